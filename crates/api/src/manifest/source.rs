// SPDX-License-Identifier: Apache-2.0
//! Finding and reading manifest files, bounded.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::fields::{Place, Report};
use super::tree::At;

/// Largest manifest file, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Most files in one load.
pub const FILES_MAX: usize = 1024;

/// A manifest file's text under the name it is reported by.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's name for diagnostics.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
}

/// Reads all files that `paths` name: files as they are, directories by their `*.yaml` and `*.yml`
/// in the order of names. Names with a leading dot are left out: editors and mounts keep theirs there.
pub(super) fn read(paths: &[PathBuf], report: &Report) -> Vec<Source> {
    let mut files = Vec::new();
    for path in paths {
        match files_of(path) {
            Ok(found) if found.is_empty() => {
                refuse(report, path, "no *.yaml or *.yml file in this directory", "");
            }
            Ok(found) => files.extend(found),
            Err(error) => refuse(report, path, &format!("cannot be read: {error}"), ""),
        }
    }
    if files.len() > FILES_MAX {
        let help = format!("use at most {FILES_MAX} files");
        refuse(report, &files[FILES_MAX], &format!("{} files are too many", files.len()), &help);
        return Vec::new();
    }
    files.iter().filter_map(|file| read_file(file, report)).collect()
}

fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        if files.len() > FILES_MAX {
            break;
        }
        let file = entry?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(file: &Path, report: &Report) -> Option<Source> {
    match read_bounded(file) {
        Ok(Ok(text)) => Some(Source { file: file.to_owned(), text }),
        Ok(Err(reason)) => {
            refuse(report, file, reason, "");
            None
        }
        Err(error) => {
            refuse(report, file, &format!("cannot be read: {error}"), "");
            None
        }
    }
}

/// The outer error is the system's, the inner one ours.
fn read_bounded(file: &Path) -> io::Result<Result<String, &'static str>> {
    // Anything but a regular file could block for ever when it is opened or read.
    if !fs::metadata(file)?.is_file() {
        return Ok(Err("is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Ok(Err("is larger than 1 MiB"));
    }
    Ok(String::from_utf8(bytes).map_err(|_| "is not UTF-8 text"))
}

fn refuse(report: &Report, file: &Path, reason: &str, help: &str) {
    let place = Place { file, at: At::default(), field: String::new() };
    report.note(&place, reason.to_owned(), help.to_owned());
}
