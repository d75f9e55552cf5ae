//! Writes the benchmark networks to files: `networks FOLDER` makes `<network>-<width>.adq` and `.bin`, one image each.

use std::path::Path;
use std::process::ExitCode;

use adcorda_formats::Width;
use adcorda_tests::networks;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: networks FOLDER");
        return ExitCode::from(2);
    };
    let folder = Path::new(&folder);
    for width in Width::ALL {
        for case in [networks::resnet8(width), networks::resnet20(width), networks::dscnn(width)] {
            let file = folder.join(case.name.replace('_', "-"));
            for (extension, bytes) in [("adq", &case.model), ("bin", &case.images[0])] {
                let file = file.with_extension(extension);
                if let Err(error) = std::fs::write(&file, bytes) {
                    eprintln!("error: {}: {error}", file.display());
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}
