// SPDX-License-Identifier: Apache-2.0
//! Type information of kernels that carry none themselves, as files.
//!
//! A file is a whole BTF, as `bpftool btf dump file vmlinux format raw` writes it and `pahole --btf_encode_detached`
//! too, under the name of the kernel's release: `5.4.0-216-generic.btf`. The release is what the guest says.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// Longest file read; kernels have 3 to 6 MB of types, large ones 20.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Longest name of a release (`__NEW_UTS_LEN`).
const RELEASE_BYTES_MAX: usize = 64;

/// The folder of the files, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Profiles(pub Option<PathBuf>);

impl Profiles {
    /// The types of a kernel by its release; what stands in the way is logged.
    pub fn types_of(&self, release: &str) -> Option<Vec<u8>> {
        let folder = self.0.as_ref()?;
        if !is_name(release) {
            tracing::warn!(release, "kernel release cannot be the name of a profile");
            return None;
        }
        let path = folder.join(format!("{release}.btf"));
        match read(&path) {
            Ok(bytes) => {
                tracing::info!(path = %path.display(), "kernel carries no types, its profile is used");
                Some(bytes)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "kernel carries no types, and its profile cannot be read");
                None
            }
        }
    }
}

fn read(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a guest's word can be the name of a file and nothing else.
fn is_name(release: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._+~".contains(&byte);
    release.len() <= RELEASE_BYTES_MAX
        && release.starts_with(|first: char| first.is_ascii_alphanumeric())
        && release.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use testkit::scratch::Scratch;

    use super::*;

    #[test]
    fn profile_is_the_file_of_that_release_and_no_other() {
        let folder = Scratch::new("profiles").unwrap();
        std::fs::write(folder.join("5.4.0-216-generic.btf"), b"types").unwrap();
        std::fs::write(folder.join(".btf"), b"hidden").unwrap();
        let profiles = Profiles(Some(folder.path().to_owned()));
        assert_eq!(profiles.types_of("5.4.0-216-generic").as_deref(), Some(&b"types"[..]));
        let outside = folder.path().join("5.4.0-216-generic");
        for release in [
            "5.4.0-217-generic",
            "",
            "../profiles/5.4.0-216-generic",
            outside.to_str().unwrap(),
            "x/y",
            "a b",
        ] {
            assert_eq!(profiles.types_of(release), None, "{release}");
        }
        assert_eq!(Profiles::default().types_of("5.4.0-216-generic"), None);
    }
}
