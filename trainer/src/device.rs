//! Where tensors live and are computed: the CPU (flex, the default; ndarray) or a CUDA GPU, chosen by name at run time.
//!
//! burn panics in a worker thread where the CUDA driver is missing, so a GPU is looked for here before burn is asked for
//! anything. This is the only file of the crate with `unsafe`: the driver calls of that look, and of asking for its free memory.

use std::fmt;

use burn_dispatch::DispatchDevice;

use crate::{Error, ErrorKind, Result};

/// A compute device that was there when it was asked for.
#[derive(Clone)]
pub struct Device {
    dispatch: DispatchDevice,
    name: String,
    free: Option<u64>,
}

/// Whether burn computes in this process's own memory, on flex: where passing over values ourselves is faster.
pub(crate) fn is_flex(device: &DispatchDevice) -> bool {
    matches!(device, DispatchDevice::Flex(_))
}

/// The names [`Device::from_name`] takes, for messages and `--help`.
pub const NAMES: &str = "flex, ndarray, cuda, cuda:N";

impl Device {
    /// The CPU backend that is always there.
    pub fn flex() -> Self {
        Self {
            dispatch: DispatchDevice::Flex(Default::default()),
            name: "flex".into(),
            free: None,
        }
    }

    /// The device called `name`: `flex`, `ndarray`, `cuda` (the first GPU) or `cuda:N`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the name is none of these; [`ErrorKind::Device`] where this build has no support for it,
    /// or there is no driver or no such GPU.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "flex" => Ok(Self::flex()),
            "ndarray" => Self::ndarray(),
            "cuda" => Self::cuda(0),
            _ => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Self::cuda(index),
                _ => Err(Error::new(ErrorKind::Usage, format!("unknown device `{name}`"))
                    .remedy(format!("give one of {NAMES} (N counts GPUs from 0)"))),
            },
        }
    }

    /// `flex`, `ndarray` or `cuda:N`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the device's own memory that were free when it was opened: what this process can have. `None` on a CPU, and
    /// where the driver does not say.
    ///
    /// As it was opened, because burn keeps what it once took: asked later, the driver would not count what can be used again.
    pub fn free_memory(&self) -> Option<u64> {
        self.free
    }

    /// Whether it computes apart from the host, so that it can fail for want of memory.
    pub(crate) fn is_gpu(&self) -> bool {
        self.name.starts_with("cuda")
    }

    /// What burn calls it.
    pub(crate) fn dispatch(&self) -> &DispatchDevice {
        &self.dispatch
    }

    #[cfg(feature = "ndarray")]
    fn ndarray() -> Result<Self> {
        Ok(Self {
            dispatch: DispatchDevice::NdArray(Default::default()),
            name: "ndarray".into(),
            free: None,
        })
    }

    #[cfg(not(feature = "ndarray"))]
    fn ndarray() -> Result<Self> {
        Err(Error::new(
            ErrorKind::Device,
            "device ndarray: this build has no support for the ndarray backend",
        )
        .remedy("build with `--features ndarray`, or use `--device flex`, which is faster"))
    }

    #[cfg(feature = "cuda")]
    fn cuda(index: usize) -> Result<Self> {
        let fail = |message: String| {
            Error::new(ErrorKind::Device, format!("device cuda:{index}: {message}"))
                .remedy("use `--device flex` to compute on the CPU")
        };
        let driver = driver::Driver::open().map_err(fail)?;
        let count = driver.device_count().map_err(fail)?;
        if index >= count {
            return Err(fail(match count {
                0 => "the CUDA driver finds no GPU".into(),
                1 => "there is one GPU, cuda:0".into(),
                _ => format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1),
            }));
        }
        Ok(Self {
            dispatch: DispatchDevice::Cuda(burn::backend::cuda::CudaDevice::new(index)),
            name: format!("cuda:{index}"),
            free: driver.free_memory(index).ok(),
        })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(index: usize) -> Result<Self> {
        Err(Error::new(
            ErrorKind::Device,
            format!("device cuda:{index}: this build has no GPU support"),
        )
        .remedy("build with `--features cuda`, or use `--device flex` to compute on the CPU"))
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::flex()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The calls into the CUDA driver that tell whether there is a GPU and how much of its memory is free.
#[cfg(feature = "cuda")]
mod driver {
    use std::ffi::{c_int, c_uint, c_void};

    use libloading::{Library, Symbol};

    const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

    /// The driver, loaded and started.
    pub(super) struct Driver {
        library: &'static Library,
    }

    impl Driver {
        /// Loads the driver, or says why it cannot be.
        pub(super) fn open() -> Result<Self, String> {
            // SAFETY: loading runs the library's initializers; the CUDA driver's have no precondition, and burn loads the
            // same library right after.
            let library =
                unsafe { Library::new(DRIVER) }.map_err(|_| format!("there is no CUDA driver ({DRIVER} cannot be loaded)"))?;
            // Never unloaded: the driver starts threads of its own.
            let library: &'static Library = Box::leak(Box::new(library));
            Ok(Self { library })
        }

        /// Number of GPUs the driver offers, or why it cannot be asked. Starts the driver.
        pub(super) fn device_count(&self) -> Result<usize, String> {
            // SAFETY: the CUDA driver API declares `CUresult cuInit(unsigned int flags)`; CUresult is a C enum, an int here.
            let init: Symbol<unsafe extern "C" fn(c_uint) -> c_int> = unsafe { self.function("cuInit") }?;
            // SAFETY: the CUDA driver API declares `CUresult cuDeviceGetCount(int *count)`.
            let count: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> = unsafe { self.function("cuDeviceGetCount") }?;
            // SAFETY: the signature is the declared one; 0 is the only flag value there is, and any thread may call it.
            match unsafe { init(0) } {
                0 => {}
                // CUDA_ERROR_NO_DEVICE
                100 => return Ok(0),
                code => return Err(format!("the CUDA driver does not start (cuInit returned {code})")),
            }
            let mut devices = 0;
            // SAFETY: the signature is the declared one, the driver is initialized, and `devices` outlives the call.
            match unsafe { count(&mut devices) } {
                0 => Ok(usize::try_from(devices).unwrap_or(0)),
                code => Err(format!(
                    "the CUDA driver cannot count GPUs (cuDeviceGetCount returned {code})"
                )),
            }
        }

        /// Bytes free on GPU `index`, one that [`device_count`](Self::device_count) counted, with the context that burn will
        /// use already taken off.
        pub(super) fn free_memory(&self, index: usize) -> Result<u64, String> {
            type Context = *mut c_void;
            // SAFETY: the CUDA driver API declares these five as `CUresult cuDeviceGet(CUdevice *, int)` with CUdevice an int,
            // `cuDevicePrimaryCtxRetain(CUcontext *, CUdevice)` with CUcontext a pointer, `cuCtxPushCurrent_v2(CUcontext)`,
            // `cuCtxPopCurrent_v2(CUcontext *)` and `cuMemGetInfo_v2(size_t *free, size_t *total)`.
            let (get, retain, push, pop, info) = unsafe {
                let get: Symbol<unsafe extern "C" fn(*mut c_int, c_int) -> c_int> = self.function("cuDeviceGet")?;
                let retain: Symbol<unsafe extern "C" fn(*mut Context, c_int) -> c_int> =
                    self.function("cuDevicePrimaryCtxRetain")?;
                let push: Symbol<unsafe extern "C" fn(Context) -> c_int> = self.function("cuCtxPushCurrent_v2")?;
                let pop: Symbol<unsafe extern "C" fn(*mut Context) -> c_int> = self.function("cuCtxPopCurrent_v2")?;
                let info: Symbol<unsafe extern "C" fn(*mut usize, *mut usize) -> c_int> = self.function("cuMemGetInfo_v2")?;
                (get, retain, push, pop, info)
            };
            let check = |call: &str, code: c_int| match code {
                0 => Ok(()),
                code => Err(format!("{call} returned {code}")),
            };
            let index = c_int::try_from(index).map_err(|_| "the number of the GPU is too large".to_owned())?;
            let (mut device, mut context, mut popped) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            let (mut free, mut total) = (0, 0);
            // SAFETY: the signatures are the declared ones, the driver is initialized, the pointers are to locals that outlive
            // the calls, and the context is the one retained. It is kept until the process ends, as burn keeps it; on this
            // thread the context that was current before is current again.
            unsafe {
                check("cuDeviceGet", get(&mut device, index))?;
                check("cuDevicePrimaryCtxRetain", retain(&mut context, device))?;
                check("cuCtxPushCurrent", push(context))?;
                let asked = check("cuMemGetInfo", info(&mut free, &mut total));
                check("cuCtxPopCurrent", pop(&mut popped))?;
                asked?;
            }
            Ok(free as u64)
        }

        /// A function of the driver.
        ///
        /// # Safety
        /// `F` is the type that the CUDA driver API declares for `name`.
        unsafe fn function<F>(&self, name: &str) -> Result<Symbol<'static, F>, String> {
            // SAFETY: the caller vouches for the type.
            unsafe { self.library.get(name.as_bytes()) }
                .map_err(|_| format!("the CUDA driver is incomplete ({DRIVER} has no {name})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flex_is_always_there() {
        assert_eq!(Device::from_name("flex").unwrap().name(), "flex");
    }

    #[test]
    fn unknown_names_are_usage_errors_that_list_the_names() {
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "flex:0", "CUDA"] {
            let error = Device::from_name(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
            let text = error.to_string();
            assert!(text.contains(&format!("`{name}`")) && text.contains(NAMES), "{text}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        for name in ["cuda", "cuda:3"] {
            let error = Device::from_name(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            let text = error.to_string();
            assert!(
                text.contains("no GPU support") && text.contains("--features cuda") && text.contains("--device flex"),
                "{text}"
            );
        }
    }

    #[cfg(not(feature = "ndarray"))]
    #[test]
    fn a_build_without_ndarray_says_so() {
        let error = Device::from_name("ndarray").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("--features ndarray"));
    }

    #[test]
    fn a_cpu_has_no_memory_of_its_own() {
        assert_eq!(Device::flex().free_memory(), None);
        assert!(!Device::flex().is_gpu());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_that_is_not_there_is_a_device_error() {
        let error = Device::from_name("cuda:4095").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("--device flex"), "{error}");
    }
}
