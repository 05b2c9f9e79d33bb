//! Headers of the tar streams that travel between the two hosts: POSIX ustar, with pax where that is
//! too small.
//! Never reads a file. Invariant: what a header says of size and place is what the stream holds
//! behind it, so any tar program can take a stream of whole files apart.
//!
//! IEEE Std 1003.1, `pax`, "ustar Interchange Format" and "pax Header Block". Owners and times are
//! left out: a set belongs to whoever takes it apart, and nothing decides by times.

use walmgr_protocol::message::backup::TAR_OFFSET_KEYWORD;
use walmgr_protocol::patch::TAR_PATCH_KEYWORD;

/// Headers and padding come in blocks of this size.
pub(crate) const BLOCK_BYTES: usize = 512;

/// The longest name and the largest size that the plain header can hold.
const NAME_BYTES: usize = 100;
const SIZE_MAX: u64 = (1 << 33) - 1;

const TYPE_FILE: u8 = b'0';
const TYPE_DIRECTORY: u8 = b'5';
const TYPE_PAX: u8 = b'x';

/// What ends a stream.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// Appends the entry of a directory.
pub fn put_directory(out: &mut Vec<u8>, path: &[u8]) {
    let path = [path, b"/"].concat();
    put_entry(out, &path, 0, None, TYPE_DIRECTORY);
}

/// Appends the entry of a file, of which `size` bytes from `offset` on follow.
pub fn put_file(out: &mut Vec<u8>, path: &[u8], size: u64, offset: u64) {
    let offset = (offset > 0).then_some((TAR_OFFSET_KEYWORD, offset));
    put_entry(out, path, size, offset, TYPE_FILE);
}

/// Appends the entry of a patch of `size` bytes, for a file that will have `len`.
pub(crate) fn put_patch(out: &mut Vec<u8>, path: &[u8], size: u64, len: u64) {
    put_entry(out, path, size, Some((TAR_PATCH_KEYWORD, len)), TYPE_FILE);
}

/// Zeros behind the content of a file of this size.
pub fn padding(size: u64) -> usize {
    let missing = size.wrapping_neg() % BLOCK_BYTES as u64;
    usize::try_from(missing).unwrap_or(0)
}

fn put_entry(out: &mut Vec<u8>, path: &[u8], size: u64, number: Option<(&str, u64)>, kind: u8) {
    let mut records = Vec::new();
    if path.len() > NAME_BYTES {
        put_record(&mut records, "path", path);
    }
    if size > SIZE_MAX {
        put_record(&mut records, "size", size.to_string().as_bytes());
    }
    if let Some((keyword, number)) = number {
        put_record(&mut records, keyword, number.to_string().as_bytes());
    }
    if !records.is_empty() {
        out.extend_from_slice(&header(b"pax", records.len() as u64, TYPE_PAX));
        let end = out.len() + records.len() + padding(records.len() as u64);
        out.extend_from_slice(&records);
        out.resize(end, 0);
    }
    let name = &path[..path.len().min(NAME_BYTES)];
    let size = if size > SIZE_MAX { 0 } else { size };
    out.extend_from_slice(&header(name, size, kind));
}

/// `LENGTH KEYWORD=VALUE\n`, where LENGTH counts the whole record.
fn put_record(out: &mut Vec<u8>, keyword: &str, value: &[u8]) {
    let bare = keyword.len() + value.len() + 3;
    let mut length = bare + 1;
    while length != bare + length.to_string().len() {
        length = bare + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {keyword}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn header(name: &[u8], size: u64, kind: u8) -> [u8; BLOCK_BYTES] {
    let mut header = [0; BLOCK_BYTES];
    header[..name.len()].copy_from_slice(name);
    let mode: &[u8] = if kind == TYPE_DIRECTORY {
        b"0000700"
    } else {
        b"0000600"
    };
    header[100..107].copy_from_slice(mode);
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    // The checksum counts as spaces while it is computed.
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn listed(tar: &[u8]) -> Option<String> {
        use std::io::Write;
        let mut child = Command::new("tar")
            .args(["-tv", "--quoting-style=escape"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(tar).ok()?;
        let output = child.wait_with_output().ok()?;
        assert!(output.status.success());
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn fault_65_any_other_tar_reads_the_same_names_and_sizes() {
        let long = format!("base/1/{}", "long".repeat(60));
        let mut tar = Vec::new();
        put_directory(&mut tar, b"base/1");
        for name in [&b"base/1/a\nb\\c"[..], long.as_bytes()] {
            put_file(&mut tar, name, 3, 0);
            tar.extend_from_slice(b"abc");
            tar.resize(tar.len() + padding(3), 0);
        }
        tar.extend_from_slice(&END);
        let Some(listed) = listed(&tar) else {
            return;
        };
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 3, "{listed}");
        assert!(lines[0].starts_with("drwx------") && lines[0].ends_with("base/1/"));
        assert!(lines[1].contains(" 3 ") && lines[1].ends_with("base/1/a\\nb\\\\c"));
        assert!(lines[2].ends_with(&long));
    }

    #[test]
    fn fault_64_a_size_beyond_8_gib_travels_as_pax() {
        let mut tar = Vec::new();
        put_file(&mut tar, b"base/1/2", 9 << 30, 0);
        assert_eq!(tar.len(), 3 * BLOCK_BYTES);
        assert_eq!(&tar[512..532], b"19 size=9663676416\n\0");
        let mut plain = Vec::new();
        put_file(&mut plain, b"base/1/2", SIZE_MAX, 0);
        assert_eq!(plain.len(), BLOCK_BYTES);
        assert_eq!(&plain[124..135], b"77777777777");
    }
}
