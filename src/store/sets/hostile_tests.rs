//! Archives made to leave the set, to confuse, or to overwhelm.
//! Never trusts an error alone: what lies outside the set is looked at too. Invariant tested: each
//! is refused, the set is given up, and nothing outside its directory was touched.

use std::path::Path;

use walmgr_protocol::limits::TAR_EXTENDED_BYTES_MAX;

use super::testing::{
    Tar, base_256, header, lease, leftovers, octal, prepare, real_sets, seal_header, write,
};
use crate::store::testing::scratch_folder;

/// Everything below a directory: names, kinds and contents.
fn picture(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let content = metadata.is_file().then(|| std::fs::read(&path).unwrap());
            lines.push(format!(
                "{} {:?} {content:?}",
                path.display(),
                metadata.file_type()
            ));
            if metadata.is_dir() {
                waiting.push(path);
            }
        }
    }
    lines.sort();
    lines
}

fn assert_refused(name: &str, stream: &[u8]) {
    let folder = scratch_folder();
    prepare(folder.path());
    std::fs::create_dir(folder.path().join("outside")).unwrap();
    std::fs::write(folder.path().join("outside/victim"), "precious").unwrap();
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    sets.recover(&lease).unwrap();
    let before = picture(folder.path());
    let incoming = sets.begin(&lease).unwrap();
    assert!(write(&incoming, stream).is_err(), "{name} was accepted");
    assert!(
        incoming.stream().is_err(),
        "{name}: the set was not given up"
    );
    drop(incoming);
    assert_eq!(picture(folder.path()), before, "{name}");
    assert_eq!(leftovers(folder.path()), [""; 0], "{name}");
}

fn changed(mut header: [u8; 512], at: usize, bytes: &[u8]) -> [u8; 512] {
    header[at..at + bytes.len()].copy_from_slice(bytes);
    seal_header(header)
}

fn tar() -> Tar {
    Tar::default()
}

fn linked(type_flag: u8, name: &[u8], target: &[u8]) -> [u8; 512] {
    changed(header(name, octal(0), type_flag), 157, target)
}

#[test]
fn fault_90_names_that_lead_out_of_the_set_are_refused() {
    let many = vec![b'a'; 300];
    let deep = "d/".repeat(70);
    let prefixed = changed(header(b"x", octal(0), b'0'), 345, b"../outside");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("dot dot", tar().file(b"../outside/victim", b"x").end()),
        (
            "dot dot inside",
            tar().file(b"base/../../outside/victim", b"x").end(),
        ),
        ("dot dot as a directory", tar().directory("..").end()),
        ("dot dot behind", tar().directory("base/..").end()),
        ("the root itself", tar().directory("./").end()),
        ("absolute", tar().file(b"/tmp/walmgr-outside", b"x").end()),
        ("absolute directory", tar().directory("/outside").end()),
        ("empty", tar().file(b"", b"x").end()),
        ("slashes only", tar().directory("/").end()),
        ("a dot", tar().file(b"./base", b"x").end()),
        ("two slashes", tar().file(b"base//1", b"x").end()),
        (
            "a file with a slash behind",
            tar().file(b"base/", b"x").end(),
        ),
        ("a directory with two", tar().directory("base//").end()),
        ("prefix", tar().raw(prefixed).end()),
        (
            "pax dot dot",
            tar()
                .pax(&[(b"path", b"../outside/victim")])
                .file(b"ok", b"x")
                .end(),
        ),
        (
            "pax absolute",
            tar().pax(&[(b"path", b"/outside")]).file(b"ok", b"x").end(),
        ),
        (
            "pax NUL",
            tar().pax(&[(b"path", b"a\0b")]).file(b"ok", b"x").end(),
        ),
        (
            "GNU dot dot",
            tar()
                .typed(b'L', b"L", b"../outside/victim\0")
                .file(b"ok", b"x")
                .end(),
        ),
        (
            "behind a NUL",
            tar().file(b"ok\0/../../outside", b"x").end(),
        ),
        (
            "a long component",
            tar().pax(&[(b"path", &many)]).file(b"ok", b"x").end(),
        ),
        (
            "too deep",
            tar()
                .pax(&[(b"path", deep.as_bytes())])
                .directory("ok")
                .end(),
        ),
        ("the label", tar().file(b"backup_label", b"x").end()),
        (
            "the other label",
            tar().file(b"backup_label.unsealed", b"x").end(),
        ),
        (
            "the label as a directory",
            tar().file(b"backup_label/x", b"x").end(),
        ),
        ("the manifest", tar().file(b"backup_manifest", b"x").end()),
        ("the map", tar().file(b"tablespace_map", b"x").end()),
    ];
    for (name, stream) in cases {
        assert_refused(name, &stream);
    }
}

#[test]
fn fault_90_links_devices_and_sparse_files_are_refused() {
    let through = |type_flag| {
        tar()
            .raw(linked(type_flag, b"base", b"../outside"))
            .file(b"base/victim", b"x")
            .end()
    };
    let sparse = [(&b"GNU.sparse.major"[..], &b"1"[..])];
    let gnu = |at: usize, bytes: &[u8]| {
        let plain = changed(header(b"a", octal(0), b'0'), 257, b"ustar  \0");
        changed(plain, at, bytes)
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a link, then a file through it", through(b'2')),
        (
            "a hard link",
            tar().file(b"a", b"x").raw(linked(b'1', b"b", b"a")).end(),
        ),
        ("a hard link out", through(b'1')),
        (
            "a link alone",
            tar().raw(linked(b'2', b"pg_wal", b"/tmp")).end(),
        ),
        (
            "a character device",
            tar().header(b"null", octal(0), b'3').end(),
        ),
        (
            "a block device",
            tar().header(b"disk", octal(0), b'4').end(),
        ),
        ("a FIFO", tar().header(b"fifo", octal(0), b'6').end()),
        ("a contiguous file", tar().typed(b'7', b"a", b"x").end()),
        ("a sparse file", tar().typed(b'S', b"a", b"x").end()),
        (
            "a sparse file by pax",
            tar().pax(&sparse).file(b"a", b"x").end(),
        ),
        (
            "a sparse map in a GNU header",
            tar().raw(gnu(386, b"00000000001")).end(),
        ),
        (
            "times in a GNU header",
            tar().raw(gnu(345, b"00000000001")).end(),
        ),
        (
            "a long link name",
            tar().typed(b'K', b"L", b"x\0").file(b"a", b"x").end(),
        ),
        (
            "a pax link",
            tar().pax(&[(b"linkpath", b"x")]).file(b"a", b"x").end(),
        ),
        (
            "a global header",
            tar().typed(b'g', b"g", b"").file(b"a", b"x").end(),
        ),
        ("a volume label", tar().header(b"v", octal(0), b'V').end()),
        ("an unknown type", tar().header(b"?", octal(0), b'Z').end()),
    ];
    for (name, stream) in cases {
        assert_refused(name, &stream);
    }
}

#[test]
fn fault_90_entries_that_collide_are_refused() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "a file twice",
            tar().file(b"a", b"x").file(b"a", b"y").end(),
        ),
        (
            "a directory twice",
            tar().directory("a/").directory("a/").end(),
        ),
        (
            "a directory over a file",
            tar().file(b"a", b"x").directory("a").end(),
        ),
        (
            "a file over a directory",
            tar().directory("a").file(b"a", b"x").end(),
        ),
        (
            "a file over a path's directory",
            tar().file(b"a/b", b"x").file(b"a", b"x").end(),
        ),
        (
            "a path through a file",
            tar().file(b"a", b"x").file(b"a/b", b"x").end(),
        ),
        (
            "goes on without a beginning",
            tar()
                .pax(&[(b"WALMGR.offset", b"5")])
                .file(b"a", b"x")
                .end(),
        ),
        (
            "goes on where it is complete",
            tar()
                .file(b"a", b"x")
                .pax(&[(b"WALMGR.offset", b"1")])
                .file(b"a", b"")
                .end(),
        ),
    ];
    for (name, stream) in cases {
        assert_refused(name, &stream);
    }
}

#[test]
fn fault_90_headers_that_two_readers_read_differently_are_refused() {
    let plain = header(b"a", octal(1), b'0');
    let mut unsealed = plain;
    unsealed[0] = b'b';
    let mut negative = [0xFF; 12];
    negative[11] = 1;
    let mut huge = [0xFF; 12];
    huge[0] = 0x80;
    let mut hidden = tar().file(b"a", b"x").0;
    hidden[600] = 1;
    let size = |size: &'static [u8]| move |entry: Tar| entry.pax(&[(b"size", size)]);
    let two = [(&b"path"[..], &b"a"[..]), (b"path", b"b")];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("checksum", tar().raw(unsealed).content(b"x").end()),
        (
            "no magic",
            tar().raw(changed(plain, 257, &[0; 8])).content(b"x").end(),
        ),
        ("a negative size", tar().header(b"a", negative, b'0').end()),
        ("a size of 95 bits", tar().header(b"a", huge, b'0').end()),
        (
            "a size of 64 bits",
            tar().header(b"a", base_256(u64::MAX), b'0').end(),
        ),
        ("no size", tar().header(b"a", [b' '; 12], b'0').end()),
        (
            "a size in words",
            tar().header(b"a", *b"0000000000x\0", b'0').end(),
        ),
        (
            "a size behind a NUL",
            tar()
                .header(b"a", *b"000001\x000007\0", b'0')
                .content(b"x")
                .end(),
        ),
        (
            "pax and ustar disagree",
            size(b"2")(tar()).file(b"a", b"x").end(),
        ),
        (
            "pax says more, ustar nothing",
            size(b"2")(tar()).header(b"a", octal(0), b'0').end(),
        ),
        (
            "pax size of a directory",
            size(b"2")(tar()).directory("a").end(),
        ),
        (
            "a directory with content",
            tar().typed(b'5', b"a", b"x").end(),
        ),
        (
            "a pax keyword twice",
            tar().pax(&two).file(b"a", b"x").end(),
        ),
        (
            "an unknown pax keyword",
            tar()
                .pax(&[(b"SCHILY.xattr.a", b"")])
                .file(b"a", b"x")
                .end(),
        ),
        (
            "a pax size in words",
            size(b"1e3")(tar()).file(b"a", b"x").end(),
        ),
        (
            "a pax record too long",
            tar()
                .typed(b'x', b"x", b"99 path=b\n")
                .file(b"a", b"x")
                .end(),
        ),
        (
            "a pax record too short",
            tar()
                .typed(b'x', b"x", b"3 path=b\n")
                .file(b"a", b"x")
                .end(),
        ),
        (
            "a pax record without an end",
            tar().typed(b'x', b"x", b"8 path=b").file(b"a", b"x").end(),
        ),
        (
            "two pax headers",
            size(b"1")(size(b"1")(tar())).file(b"a", b"x").end(),
        ),
        (
            "pax and GNU",
            size(b"1")(tar())
                .typed(b'L', b"L", b"b\0")
                .file(b"a", b"x")
                .end(),
        ),
        ("a pax header at the end", size(b"1")(tar()).end()),
        (
            "a large pax header",
            tar()
                .typed(b'x', b"x", &vec![b' '; TAR_EXTENDED_BYTES_MAX + 1])
                .end(),
        ),
        (
            "a large long name",
            tar().typed(b'L', b"L", &vec![b'a'; 5_000]).end(),
        ),
        ("something in the padding", hidden),
        (
            "an entry behind the end",
            [tar().end(), tar().file(b"a", b"x").end()].concat(),
        ),
        (
            "one block of zeros",
            tar().content(&[0; 512]).file(b"a", b"x").end(),
        ),
        ("no end", tar().file(b"a", b"x").0),
        (
            "an end in a header",
            tar().file(b"a", b"x").0[..700].to_vec(),
        ),
    ];
    for (name, stream) in cases {
        assert_refused(name, &stream);
    }
}

#[test]
fn fault_90_a_link_planted_while_a_set_arrives_is_not_followed() {
    let folder = scratch_folder();
    prepare(folder.path());
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let incoming = sets.begin(&lease).unwrap();
    let root = folder.path().join("data.master.incoming");
    write(
        &incoming,
        &tar().directory("base").directory("pg_wal").end(),
    )
    .unwrap();
    std::fs::remove_dir(root.join("base")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("base")).unwrap();
    let error = write(&incoming, &tar().file(b"base/victim", b"x").end()).unwrap_err();
    assert!(error.to_string().contains("a link"), "{error}");
    drop(incoming);
    assert!(outside.exists() && std::fs::read_dir(&outside).unwrap().next().is_none());
    assert!(!root.exists());
}
