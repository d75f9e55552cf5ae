//! Downloading the official CIFAR archives: resumable, checked before anything is unpacked, and never half there.
//!
//! The archive grows in `DIR/<name>.tar.gz.part`; a cut download goes on from there. Only when its length and MD5 are those
//! published is it unpacked, into a temporary folder that is then renamed: a data folder that exists is whole. MD5 is what
//! the authors publish (<https://www.cs.toronto.edu/~kriz/cifar.html>); it detects damage, not malice.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use md5::{Digest, Md5};
use serde::Serialize;
use ureq::http::StatusCode;

use super::cifar::Variant;
use super::{SetSpec, Split};
use crate::{Error, ErrorKind, Result};

/// What [`fetch`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Fetched {
    /// The set is part of this program: there is nothing to download.
    BuiltIn,
    /// All files were there, with the right lengths: nothing was done.
    AlreadyThere {
        /// The folder with the files.
        folder: PathBuf,
    },
    /// Downloaded, verified and unpacked.
    Downloaded {
        /// The folder with the files.
        folder: PathBuf,
        /// Length of the archive.
        bytes: u64,
        /// Bytes of it that an earlier, cut download had left.
        resumed_from: u64,
    },
}

/// An archive to download, and what to take out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Where it is; the part after the last `/` names the file.
    pub url: String,
    /// Its MD5, in lower-case hexadecimal.
    pub md5: String,
    /// Its length.
    pub bytes: u64,
    /// The folder in it that holds the files.
    pub folder: String,
    /// The files to take out. Whatever else it holds is left in it.
    pub members: Vec<Member>,
}

/// A file in an [`Archive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the archive's folder.
    pub name: String,
    /// Its exact length; `None` for a small text that may be missing.
    pub bytes: Option<u64>,
}

impl Archive {
    /// The official archive of CIFAR-10 or CIFAR-100.
    pub fn official(variant: Variant) -> Self {
        let (name, md5, bytes, records, texts) = match variant {
            Variant::Cifar10 => (
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                170_052_171,
                [10_000, 10_000],
                &["batches.meta.txt"][..],
            ),
            Variant::Cifar100 => (
                "cifar-100-binary.tar.gz",
                "03b5dce01913d631647c71ecec9e9cb8",
                168_513_733,
                [50_000, 10_000],
                &["fine_label_names.txt", "coarse_label_names.txt"][..],
            ),
        };
        let images = [Split::Train, Split::Test]
            .into_iter()
            .zip(records)
            .flat_map(|(split, records)| {
                variant.files(split).iter().map(move |&name| Member {
                    name: name.to_owned(),
                    bytes: Some(records * variant.record_bytes() as u64),
                })
            });
        let texts = texts.iter().map(|&name| Member {
            name: name.to_owned(),
            bytes: None,
        });
        Self {
            url: format!("https://www.cs.toronto.edu/~kriz/{name}"),
            md5: md5.to_owned(),
            bytes,
            folder: variant.folder().to_owned(),
            members: images.chain(texts).collect(),
        }
    }

    /// The same archive below another address, such as a mirror in a closed network.
    #[must_use]
    pub fn mirrored(mut self, base_url: &str) -> Self {
        self.url = format!("{}/{}", base_url.trim_end_matches('/'), self.name());
        self
    }

    fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }

    /// Downloads into `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] where `dir` holds other files of these names, [`ErrorKind::Download`] where the server or the
    /// archive is not as it should be, [`ErrorKind::Io`] where writing fails.
    pub fn fetch(&self, dir: &Path, progress: &ProgressBar) -> Result<Fetched> {
        if let Some(folder) = self.present_in(dir)? {
            return Ok(Fetched::AlreadyThere { folder });
        }
        fs::create_dir_all(dir)
            .map_err(|e| Error::io("create", dir, e).remedy("name a folder that can be written, with --dir"))?;
        let path = dir.join(format!("{}.part", self.name()));
        let mut part = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e).remedy("check that the folder is writable"))?;
        if part.try_lock().is_err() {
            return Err(Error::new(
                ErrorKind::Download,
                format!("{}: another download is writing it", path.display()),
            )
            .remedy("wait until it has ended"));
        }
        let resumed_from = self.download(&mut part, &path, progress)?;
        let found = md5(&mut part).map_err(|e| Error::io("read", &path, e))?;
        if found != self.md5 {
            drop(part);
            remove(&path)?;
            return Err(Error::new(
                ErrorKind::Download,
                format!("{}: the MD5 is {found}, not {}; the file was removed", self.url, self.md5),
            )
            .remedy("run the same command again; if it happens again, the server has another file"));
        }
        let folder = self.unpack(&mut part, dir)?;
        drop(part);
        remove(&path)?;
        Ok(Fetched::Downloaded {
            folder,
            bytes: self.bytes,
            resumed_from,
        })
    }

    /// The folder in which all files are, `dir` itself or the archive's below it; `None` where neither holds any.
    fn present_in(&self, dir: &Path) -> Result<Option<PathBuf>> {
        for candidate in [dir.to_owned(), dir.join(&self.folder)] {
            let mut wrong = None;
            let mut present = 0;
            for member in &self.members {
                let Some(expected) = member.bytes else { continue };
                let path = candidate.join(&member.name);
                match fs::metadata(&path) {
                    Ok(metadata) => {
                        present += 1;
                        if metadata.len() != expected {
                            wrong = Some(format!("{} has {} bytes, not {expected}", path.display(), metadata.len()));
                        }
                    }
                    Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) => {
                        wrong = Some(format!("{} is missing", path.display()));
                    }
                    Err(e) => return Err(Error::io("examine", &path, e)),
                }
            }
            match wrong {
                None => return Ok(Some(candidate)),
                Some(wrong) if present > 0 => {
                    return Err(Error::new(
                        ErrorKind::Data,
                        format!("{}: already holds other files of this set: {wrong}", candidate.display()),
                    )
                    .remedy("name another folder to download to, or move those files away"));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Completes `part`; returns how much of it was there before.
    fn download(&self, part: &mut File, path: &Path, progress: &ProgressBar) -> Result<u64> {
        let io_error = |e| Error::io("write", path, e).remedy("check that there is space left; the next run goes on from here");
        let mut have = part.metadata().map_err(io_error)?.len();
        if have > self.bytes {
            part.set_len(0).map_err(io_error)?;
            have = 0;
        }
        if have == self.bytes {
            return Ok(have);
        }

        let mut response = self.request(have)?;
        let resumed = have > 0 && response.status() == StatusCode::PARTIAL_CONTENT && continues(&response, have);
        if have > 0 && !resumed && [StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE].contains(&response.status())
        {
            response = self.request(0)?;
        }
        if !resumed && response.status() != StatusCode::OK {
            return Err(self.unreachable(format!("the server answered {}", response.status())));
        }
        let from = if resumed { have } else { 0 };
        if let Some(length) = response.body().content_length()
            && from + length != self.bytes
        {
            return Err(self.unreachable(format!(
                "the server offers {} bytes, not {}: it has another file",
                from + length,
                self.bytes
            )));
        }
        // Only now, with the whole archive on its way, is what was there given up.
        if !resumed {
            part.set_len(0).map_err(io_error)?;
            have = 0;
        }
        part.seek(io::SeekFrom::Start(have)).map_err(io_error)?;
        progress.set_length(self.bytes);
        progress.set_position(have);

        let resumed_from = have;
        // One byte more than expected is enough to tell that the file is another.
        let mut body = response.body_mut().as_reader().take(self.bytes - have + 1);
        let mut buffer = vec![0; 1 << 16];
        let cause = loop {
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(count) => {
                    part.write_all(&buffer[..count]).map_err(io_error)?;
                    have += count as u64;
                    progress.set_position(have);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Some(e),
            }
        };
        if have < self.bytes {
            let cause = cause.map(|e| format!(": {e}")).unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Download,
                format!("{}: cut after {have} of {} bytes{cause}", self.url, self.bytes),
            )
            .remedy("run the same command again: it goes on from there"));
        }
        progress.finish_and_clear();
        Ok(resumed_from)
    }

    fn request(&self, from: u64) -> Result<ureq::http::Response<ureq::Body>> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The archive is compressed already, and its own bytes are wanted.
            .accept_encoding("identity")
            .user_agent(concat!("adcorda/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        // A proxy cannot reach a server on this very machine.
        let local = ["http://127.0.0.1:", "http://localhost:"]
            .iter()
            .any(|h| self.url.starts_with(h));
        let config = if local { config.proxy(None) } else { config };
        let mut request = config.build().new_agent().get(&self.url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| self.unreachable(e.to_string()))
    }

    fn unreachable(&self, cause: String) -> Error {
        Error::new(ErrorKind::Download, format!("cannot download {}: {cause}", self.url)).remedy(format!(
            "check the network and the address, or get {} elsewhere and unpack it in the folder",
            self.name()
        ))
    }

    /// Takes the members out of the verified archive into `dir/<folder>`, all of them or none.
    fn unpack(&self, part: &mut File, dir: &Path) -> Result<PathBuf> {
        let malformed = |what: String| {
            Error::new(ErrorKind::Download, format!("{}: {what}", self.name()))
                .remedy("run the same command again; if it happens again, the archive is not the official one")
        };
        let unreadable = |e: io::Error| malformed(format!("cannot be unpacked: {e}"));
        let write = |path: &Path, e| Error::io("write", path, e).remedy("check that there is space left, then run it again");

        part.rewind().map_err(unreadable)?;
        let temporary = tempfile::Builder::new()
            .prefix(".unpack-")
            .tempdir_in(dir)
            .map_err(|e| write(dir, e))?;
        // The temporary folder is private; the one within gets the permissions of any new folder.
        let staging = temporary.path().join(&self.folder);
        fs::create_dir(&staging).map_err(|e| write(&staging, e))?;
        let mut missing: Vec<&Member> = self.members.iter().collect();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*part));
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let inner = entry.path().map_err(unreadable)?.into_owned();
            // Names are compared, never used as paths.
            let Some(index) = missing.iter().position(|m| inner == Path::new(&self.folder).join(&m.name)) else {
                continue;
            };
            let member = missing.swap_remove(index);
            let length = entry.size();
            if !entry.header().entry_type().is_file() || length > SMALL_TEXT && member.bytes.is_none() {
                return Err(malformed(format!("{} is not a file of the expected kind", member.name)));
            }
            if let Some(expected) = member.bytes
                && length != expected
            {
                return Err(malformed(format!("{} has {length} bytes, not {expected}", member.name)));
            }
            let path = staging.join(&member.name);
            let mut file = File::create_new(&path).map_err(|e| write(&path, e))?;
            io::copy(&mut entry, &mut file)
                .and_then(|_| file.sync_all())
                .map_err(|e| write(&path, e))?;
        }
        if let Some(member) = missing.iter().find(|member| member.bytes.is_some()) {
            return Err(malformed(format!("{}/{} is not in it", self.folder, member.name)));
        }
        let folder = dir.join(&self.folder);
        fs::rename(&staging, &folder).map_err(|e| write(&folder, e))?;
        Ok(folder)
    }
}

/// Most bytes of a text whose length is not known beforehand.
const SMALL_TEXT: u64 = 1 << 16;

/// Downloads a set to the folder that it names; `base_url` replaces the official address up to the file's name.
///
/// # Errors
/// As [`Archive::fetch`].
pub fn fetch(set: &SetSpec, base_url: Option<&str>, progress: &ProgressBar) -> Result<Fetched> {
    let (variant, dir) = match set {
        SetSpec::Cifar10(dir) => (Variant::Cifar10, dir),
        SetSpec::Cifar100(dir) => (Variant::Cifar100, dir),
        SetSpec::Synthetic { .. } => return Ok(Fetched::BuiltIn),
    };
    let official = Archive::official(variant);
    let archive = match base_url {
        Some(base_url) => official.mirrored(base_url),
        None => official,
    };
    archive.fetch(dir, progress)
}

/// A bar on standard error; nothing where that is not a terminal.
pub fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// Whether a partial answer starts where it was asked to.
fn continues(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn md5(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut hasher = Md5::new();
    io::copy(file, &mut hasher)?;
    Ok(format!("{:x}", hasher.finalize()))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// How the test server misbehaves.
    #[derive(Clone, Copy, Default)]
    struct Manners {
        ignores_range: bool,
        wrong_range: bool,
        /// Sends this many bytes of a body, then hangs up.
        cut_after: Option<usize>,
        status: Option<&'static str>,
    }

    #[derive(Debug, PartialEq)]
    struct Request {
        target: String,
        range: Option<String>,
    }

    /// Serves `file` on any path until the process ends; keeps the requests.
    struct Server {
        base_url: String,
        requests: Arc<Mutex<Vec<Request>>>,
        manners: Arc<Mutex<Manners>>,
    }

    impl Server {
        fn new(file: Vec<u8>) -> Self {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let server = Self {
                base_url: format!("http://{}/mirror", listener.local_addr().unwrap()),
                requests: Arc::default(),
                manners: Arc::default(),
            };
            let (requests, manners) = (server.requests.clone(), server.manners.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut reader = BufReader::new(stream.unwrap());
                    let mut lines = Vec::new();
                    loop {
                        let mut line = String::new();
                        if reader.read_line(&mut line).unwrap() <= 2 {
                            break;
                        }
                        lines.push(line.trim().to_owned());
                    }
                    let range = lines.iter().find_map(|line| {
                        let (name, value) = line.split_once(": ")?;
                        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
                    });
                    let target = lines[0].split(' ').nth(1).unwrap().to_owned();
                    requests.lock().unwrap().push(Request {
                        target,
                        range: range.clone(),
                    });
                    let manners = *manners.lock().unwrap();
                    let from: Option<usize> = range
                        .filter(|_| !manners.ignores_range)
                        .map(|range| range["bytes=".len()..range.len() - 1].parse().unwrap());
                    let (status, body) = match (manners.status, from) {
                        (Some(status), _) => (status.to_owned(), &b"no"[..]),
                        (None, Some(from)) => {
                            let shown = if manners.wrong_range { 0 } else { from };
                            let range = format!("bytes {shown}-{}/{}", file.len() - 1, file.len());
                            (format!("206 Partial Content\r\nContent-Range: {range}"), &file[from..])
                        }
                        (None, None) => ("200 OK".to_owned(), &file[..]),
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let body = &body[..manners.cut_after.unwrap_or(body.len()).min(body.len())];
                    // The client may hang up first.
                    let stream = reader.get_mut();
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
                }
            });
            server
        }

        fn set(&self, manners: Manners) {
            *self.manners.lock().unwrap() = manners;
        }

        fn ranges(&self) -> Vec<Option<String>> {
            self.requests.lock().unwrap().iter().map(|r| r.range.clone()).collect()
        }
    }

    /// A gzipped tar of these entries.
    fn tar_gz(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none()));
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Set as bytes, because the library refuses to write a path that leaves the folder.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    static IMAGES: [u8; 100_000] = [7; 100_000];
    static USUAL: [(&str, &[u8]); 4] = [
        ("set-bin/readme.html", b"unwanted"),
        ("set-bin/train.bin", &IMAGES),
        ("set-bin/names.txt", b"a\nb\n"),
        ("set-bin/test.bin", b"0123456789"),
    ];

    /// An archive of these entries on a server of its own, and a folder to fetch it to.
    fn fixture(entries: &[(&str, &[u8])]) -> (Server, Archive, tempfile::TempDir) {
        let file = tar_gz(entries);
        let member = |name: &str, bytes| Member {
            name: name.to_owned(),
            bytes,
        };
        let archive = Archive {
            url: "https://example.org/elsewhere/set.tar.gz".to_owned(),
            md5: format!("{:x}", Md5::digest(&file)),
            bytes: file.len() as u64,
            folder: "set-bin".to_owned(),
            members: vec![
                member("train.bin", Some(100_000)),
                member("test.bin", Some(10)),
                member("names.txt", None),
            ],
        };
        let server = Server::new(file);
        let archive = archive.mirrored(&server.base_url);
        (server, archive, tempfile::tempdir().unwrap())
    }

    fn fetch(archive: &Archive, dir: &Path) -> Result<Fetched> {
        archive.fetch(dir, &ProgressBar::hidden())
    }

    fn failure(archive: &Archive, dir: &Path, kind: ErrorKind, needles: &[&str]) {
        let error = fetch(archive, dir).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for needle in needles {
            assert!(error.to_string().contains(needle), "no `{needle}` in: {error}");
        }
    }

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn assert_whole(dir: &Path) {
        assert_eq!(entries(dir), ["set-bin"]);
        let folder = dir.join("set-bin");
        assert_eq!(entries(&folder), ["names.txt", "test.bin", "train.bin"]);
        assert_eq!(fs::read(folder.join("train.bin")).unwrap(), IMAGES);
        assert_eq!(fs::read(folder.join("test.bin")).unwrap(), b"0123456789");
    }

    #[test]
    fn a_whole_download_is_unpacked_and_not_repeated() {
        let (server, archive, dir) = fixture(&USUAL);
        let dir = dir.path().join("new/folder");
        let folder = dir.join("set-bin");
        let expected = Fetched::Downloaded {
            folder: folder.clone(),
            bytes: archive.bytes,
            resumed_from: 0,
        };
        assert_eq!(fetch(&archive, &dir).unwrap(), expected);
        assert_whole(&dir);
        assert_eq!(server.requests.lock().unwrap()[0].target, "/mirror/set.tar.gz");
        assert_eq!(server.ranges(), [None]);

        let there = Fetched::AlreadyThere { folder: folder.clone() };
        assert_eq!(fetch(&archive, &dir).unwrap(), there);
        assert_eq!(fetch(&archive, &folder).unwrap(), there, "the files' own folder");
        assert_eq!(server.ranges().len(), 1);
    }

    #[test]
    fn a_cut_download_goes_on_where_it_ended() {
        let (server, archive, dir) = fixture(&USUAL);
        server.set(Manners {
            cut_after: Some(40_000),
            ..Manners::default()
        });
        failure(
            &archive,
            dir.path(),
            ErrorKind::Download,
            &["cut after 40000 of", "run the same command again"],
        );
        assert_eq!(entries(dir.path()), ["set.tar.gz.part"]);
        failure(&archive, dir.path(), ErrorKind::Download, &["cut after 80000 of"]);
        server.set(Manners::default());
        let Fetched::Downloaded { resumed_from, .. } = fetch(&archive, dir.path()).unwrap() else {
            panic!("downloaded nothing");
        };
        assert_eq!(resumed_from, 80_000);
        assert_whole(dir.path());
        assert_eq!(
            server.ranges(),
            [None, Some("bytes=40000-".into()), Some("bytes=80000-".into())]
        );
    }

    #[test]
    fn a_server_that_cannot_resume_sends_everything_again() {
        for manners in [
            Manners {
                ignores_range: true,
                ..Manners::default()
            },
            Manners {
                wrong_range: true,
                ..Manners::default()
            },
        ] {
            let (server, archive, dir) = fixture(&USUAL);
            fs::write(dir.path().join("set.tar.gz.part"), [0; 5_000]).unwrap();
            server.set(manners);
            let Fetched::Downloaded { resumed_from, .. } = fetch(&archive, dir.path()).unwrap() else {
                panic!("downloaded nothing");
            };
            assert_eq!(resumed_from, 0);
            assert_whole(dir.path());
        }
    }

    #[test]
    fn a_whole_part_is_unpacked_without_a_request() {
        let (server, archive, dir) = fixture(&USUAL);
        fs::write(dir.path().join("set.tar.gz.part"), tar_gz(&USUAL)).unwrap();
        fetch(&archive, dir.path()).unwrap();
        assert_whole(dir.path());
        assert!(server.ranges().is_empty());
    }

    #[test]
    fn an_overlong_part_is_begun_anew() {
        let (server, archive, dir) = fixture(&USUAL);
        fs::write(dir.path().join("set.tar.gz.part"), [0; 200_000]).unwrap();
        fetch(&archive, dir.path()).unwrap();
        assert_whole(dir.path());
        assert_eq!(server.ranges(), [None]);
    }

    #[test]
    fn a_wrong_checksum_names_both_sums_and_removes_the_part() {
        let (_server, mut archive, dir) = fixture(&USUAL);
        let found = std::mem::replace(&mut archive.md5, "00112233445566778899aabbccddeeff".to_owned());
        failure(&archive, dir.path(), ErrorKind::Download, &[&found, &archive.md5]);
        assert!(entries(dir.path()).is_empty());
    }

    #[test]
    fn damage_in_an_earlier_part_is_found() {
        let (server, archive, dir) = fixture(&USUAL);
        fs::write(dir.path().join("set.tar.gz.part"), [0; 5_000]).unwrap();
        failure(&archive, dir.path(), ErrorKind::Download, &["MD5"]);
        assert_eq!(server.ranges(), [Some("bytes=5000-".into())]);
        fetch(&archive, dir.path()).unwrap();
        assert_whole(dir.path());
    }

    #[test]
    fn a_refusal_names_address_and_status() {
        let (server, archive, dir) = fixture(&USUAL);
        server.set(Manners {
            status: Some("404 Not Found"),
            ..Manners::default()
        });
        failure(
            &archive,
            dir.path(),
            ErrorKind::Download,
            &[&archive.url, "404 Not Found", "check the network"],
        );
        fs::write(dir.path().join("set.tar.gz.part"), &tar_gz(&USUAL)[..6_000]).unwrap();
        failure(&archive, dir.path(), ErrorKind::Download, &["404 Not Found"]);
        server.set(Manners::default());
        let Fetched::Downloaded { resumed_from, .. } = fetch(&archive, dir.path()).unwrap() else {
            panic!("downloaded nothing");
        };
        assert_eq!(resumed_from, 6_000, "a refusal gave up what was there");
    }

    #[test]
    fn no_server_is_a_download_error() {
        let (_server, archive, dir) = fixture(&USUAL);
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let archive = archive.mirrored(&format!("http://{free}/"));
        failure(
            &archive,
            dir.path(),
            ErrorKind::Download,
            &[&format!("http://{free}/set.tar.gz")],
        );
    }

    #[test]
    fn another_length_is_refused_before_the_download() {
        let (_server, mut archive, dir) = fixture(&USUAL);
        let offered = archive.bytes;
        archive.bytes += 1;
        failure(
            &archive,
            dir.path(),
            ErrorKind::Download,
            &[&format!("{offered} bytes"), &format!("not {}", archive.bytes)],
        );
    }

    #[test]
    fn only_expected_names_leave_the_archive() {
        let mut hostile = USUAL.to_vec();
        hostile.extend([
            ("../escaped", &b"x"[..]),
            ("set-bin/../../escaped", b"x"),
            ("/tmp/escaped-from-set", b"x"),
        ]);
        let (_server, archive, dir) = fixture(&hostile);
        let inner = dir.path().join("inner");
        fetch(&archive, &inner).unwrap();
        assert_whole(&inner);
        assert_eq!(entries(dir.path()), ["inner"]);
    }

    #[test]
    fn an_archive_without_a_file_leaves_no_folder() {
        for (entries, needle) in [
            (&USUAL[..3], "set-bin/test.bin is not in it"),
            (
                &[("set-bin/train.bin", &IMAGES[..]), ("set-bin/test.bin", b"short")],
                "test.bin has 5 bytes, not 10",
            ),
        ] {
            let (_server, archive, dir) = fixture(entries);
            failure(&archive, dir.path(), ErrorKind::Download, &[needle]);
            assert!(!dir.path().join("set-bin").exists());
        }
    }

    #[test]
    fn files_of_another_set_are_not_overwritten() {
        let (server, archive, dir) = fixture(&USUAL);
        fs::write(dir.path().join("test.bin"), "mine").unwrap();
        failure(
            &archive,
            dir.path(),
            ErrorKind::Data,
            &["already holds", "name another folder"],
        );
        fs::remove_file(dir.path().join("test.bin")).unwrap();
        fs::create_dir(dir.path().join("set-bin")).unwrap();
        fs::write(dir.path().join("set-bin/train.bin"), "mine").unwrap();
        fs::write(dir.path().join("set-bin/test.bin"), "0123456789").unwrap();
        failure(&archive, dir.path(), ErrorKind::Data, &["train.bin has 4 bytes, not 100000"]);
        assert!(server.ranges().is_empty());
    }

    #[test]
    fn two_downloads_do_not_mix() {
        let (_server, archive, dir) = fixture(&USUAL);
        let other = File::create(dir.path().join("set.tar.gz.part")).unwrap();
        other.lock().unwrap();
        failure(&archive, dir.path(), ErrorKind::Download, &["another download"]);
    }

    #[test]
    fn the_built_in_set_needs_no_download() {
        let outcome = super::fetch(&SetSpec::SYNTHETIC, None, &ProgressBar::hidden()).unwrap();
        assert_eq!(outcome, Fetched::BuiltIn);
    }

    #[test]
    fn the_official_archives_hold_the_files_that_are_read() {
        let archive = Archive::official(Variant::Cifar10);
        assert_eq!(archive.name(), "cifar-10-binary.tar.gz");
        assert_eq!(archive.members.iter().filter_map(|m| m.bytes).sum::<u64>(), 60_000 * 3_073);
        let archive = Archive::official(Variant::Cifar100).mirrored("http://mirror/");
        assert_eq!(archive.url, "http://mirror/cifar-100-binary.tar.gz");
        assert_eq!(archive.members.iter().filter_map(|m| m.bytes).sum::<u64>(), 60_000 * 3_074);
    }
}
