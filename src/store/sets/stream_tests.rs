//! The streams of a backup set: cut, continued, large, with any names, and several at once.
//! Never needs a server: the streams are made up. Invariant tested: what a stream says arrives byte
//! for byte, once, inside the set.

use std::os::fd::AsFd;
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use walmgr_protocol::names::RelativePath;

use super::testing::{
    Tar, base_256, lease, leftovers, octal, path, prepare, real_sets, sample_files, sample_stream,
    seal, versions, wal_proof, write,
};
use super::{BackupSets, HeldFile, SetError};
use crate::store::testing::scratch_folder;
use crate::tar::{TarReader, TarStep};

#[test]
fn several_streams_fill_one_set_at_once() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let incoming = sets.begin(&lease).unwrap();
    let files: Vec<_> = sample_files(1).into_iter().collect();
    std::thread::scope(|scope| {
        for (number, share) in files.chunks(2).enumerate() {
            let incoming = &incoming;
            scope.spawn(move || {
                let mut tar = Tar::default();
                for (name, content) in share {
                    tar = tar.file(name.as_bytes(), content);
                }
                for file in 0..200 {
                    let name = format!("base/1/shared/{number}/{file}");
                    tar = tar.file(name.as_bytes(), &[7; 700]);
                }
                write(incoming, &tar.end()).unwrap();
            });
        }
    });
    let count = files.len() + files.chunks(2).count() * 200;
    assert_eq!(incoming.complete_files().len(), count);
    // The manifest knows nothing of the shared directory.
    let error = seal(incoming, 1, &wal).unwrap_err();
    assert!(matches!(error, SetError::Manifest { .. }), "{error}");
    assert_eq!(leftovers(folder.path()), [""; 0]);
}

/// FAULTS 67: sent again is what was not held.
#[test]
fn fault_67_a_cut_stream_goes_on_where_it_was_cut() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let incoming = sets.begin(&lease).unwrap();
    let whole = sample_stream(2);
    let cut_file = path("global/pg_control");
    let content = &sample_files(2)["global/pg_control"];
    let at = (0..whole.len()).find(|at| whole[*at..].starts_with(b"global/pg_control"));
    let mut stream = incoming.stream().unwrap();
    stream.write(&whole[..at.unwrap() + 512 + 1_000]).unwrap();
    drop(stream);
    let HeldFile::Partial { held, len } = incoming.held(&cut_file) else {
        panic!("{:?}", incoming.held(&cut_file))
    };
    assert_eq!((held.len, len), (1_000, 8_192));
    assert_eq!(held.crc32c, crc32c::crc32c(&content[..1_000]));

    let mut tar = Tar::default()
        .pax(&[(b"WALMGR.offset", b"1000")])
        .file(cut_file.as_bytes(), &content[1_000..]);
    for (name, content) in sample_files(2) {
        if matches!(incoming.held(&path(&name)), HeldFile::Absent) {
            tar = tar.file(name.as_bytes(), &content);
        }
    }
    let sealed = write(&incoming, &tar.end()).unwrap();
    assert_eq!(sealed[0].digest.crc32c, crc32c::crc32c(content));
    seal(incoming, 2, &wal).unwrap();
    assert_eq!(
        versions(folder.path()).unwrap(),
        [("data.master".to_owned(), 2)]
    );
}

#[test]
fn fault_67_a_cut_file_goes_on_at_its_end_or_from_its_beginning_only() {
    let first = Tar::default().file(b"a", &[1; 3_000]).0;
    let cut = |sets: &BackupSets| {
        let incoming = sets.begin(&lease(sets).unwrap()).unwrap();
        let mut stream = incoming.stream().unwrap();
        stream.write(&first[..2_000]).unwrap();
        drop(stream);
        incoming
    };
    let folder = scratch_folder();
    prepare(folder.path());
    let sets = real_sets(folder.path());
    for (offset, size) in [
        ("1487", 1_513),
        ("1489", 1_511),
        ("1488", 1_511),
        ("1488", 1_513),
    ] {
        let incoming = cut(&sets);
        let tar = Tar::default().pax(&[(b"WALMGR.offset", offset.as_bytes())]);
        let error = write(&incoming, &tar.file(b"a", &vec![1; size]).end());
        assert!(error.is_err(), "{offset} {size}");
    }
    let incoming = cut(&sets);
    write(&incoming, &Tar::default().file(b"a", &[9; 10]).end()).unwrap();
    let content = std::fs::read(folder.path().join("data.master.incoming/a")).unwrap();
    assert_eq!(content, [9; 10]);
}

#[test]
fn fault_56_an_entry_has_exactly_the_length_of_its_header() {
    let folder = scratch_folder();
    prepare(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    for (announced, sent) in [(600_u64, 100_usize), (600, 1_600), (0, 1)] {
        let incoming = sets.begin(&lease).unwrap();
        let tar = Tar::default().header(b"a", octal(announced), b'0');
        let stream = tar.content(&vec![1; sent]).end();
        assert!(write(&incoming, &stream).is_err(), "{announced} {sent}");
    }
    let incoming = sets.begin(&lease).unwrap();
    let padded = Tar::default().file(b"a", &[&[1; 100][..], &[0; 500]].concat());
    let sealed = write(&incoming, &padded.end()).unwrap();
    assert_eq!(sealed[0].digest.len, 600);
}

/// FAULTS 64: 9 GiB of zeros take no space and their length survives.
#[test]
fn fault_64_entries_beyond_8_gib_arrive_with_their_length() {
    const SIZE: u64 = 9 << 30;
    let folder = scratch_folder();
    prepare(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    let incoming = sets.begin(&lease).unwrap();
    let by_number = Tar::default().header(b"number", base_256(SIZE), b'0');
    let by_pax = Tar::default()
        .pax(&[(b"size", SIZE.to_string().as_bytes())])
        .header(b"pax", octal(0), b'0');
    let zeros = vec![0; 16 << 20];
    for (name, tar) in [("number", by_number), ("pax", by_pax)] {
        let mut stream = incoming.stream().unwrap();
        stream.write(&tar.0).unwrap();
        stream.write(b"first").unwrap();
        let mut left = SIZE - 9;
        while left > 0 {
            let piece = left.min(zeros.len() as u64);
            assert_eq!(
                stream
                    .write(&zeros[..usize::try_from(piece).unwrap()])
                    .unwrap(),
                []
            );
            left -= piece;
        }
        let sealed = stream.write(b"last").unwrap();
        assert_eq!((&sealed[0].path, sealed[0].digest.len), (&path(name), SIZE));
        stream.write(&[0; 1_024]).unwrap();
        stream.finish().unwrap();
        let file = std::fs::File::open(folder.path().join("data.master.incoming").join(name));
        let file = file.unwrap();
        let mut end = [1; 8];
        rustix::io::pread(file.as_fd(), &mut end, SIZE - 8).unwrap();
        assert_eq!(
            (file.metadata().unwrap().len(), &end),
            (SIZE, b"\0\0\0\0last")
        );
    }
}

/// What a stream says, whatever pieces it comes in.
fn steps(stream: &[u8], piece: usize) -> (Vec<String>, Vec<u8>) {
    let mut reader = TarReader::default();
    let (mut told, mut data) = (Vec::new(), Vec::new());
    for mut bytes in stream.chunks(piece) {
        loop {
            match reader.next(&mut bytes) {
                Ok(TarStep::NeedMore) => break,
                Ok(TarStep::Data(bytes)) => data.extend_from_slice(bytes),
                Ok(step) => told.push(format!("{step:?}")),
                Err(fault) => {
                    told.push(fault.to_string());
                    return (told, data);
                }
            }
        }
    }
    told.push(format!("{:?}", reader.finish()));
    (told, data)
}

fn file_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("a name", |byte| ![0, b'/'].contains(byte));
    vec(byte, 1..=255).prop_filter("a name", |name| !matches!(&name[..], b"." | b".."))
}

/// Paths that meet each other and the outside in every way.
fn colliding_path() -> impl Strategy<Value = String> {
    let component = prop_oneof![
        6 => "[ab]",
        1 => Just("..".to_owned()),
        1 => Just(String::new()),
        1 => Just("backup_label".to_owned()),
    ];
    vec(component, 1..4).prop_map(|components| components.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// FAULTS 90: entries in any order and combination stay inside, and what was taken is there.
    #[test]
    fn fault_90_no_mixture_of_entries_leaves_the_set(
        entries in vec((colliding_path(), any::<bool>(), prop_oneof![9 => Just(b'0'),
            1 => Just(b'2'), 1 => Just(b'1')]), 1..12)
    ) {
        let folder = scratch_folder();
        prepare(folder.path());
        let above = |root: &Path| -> Vec<_> {
            let names = std::fs::read_dir(root).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let sets = real_sets(folder.path());
        let incoming = sets.begin(&lease(&sets).unwrap()).unwrap();
        let before = above(folder.path());
        for (number, (path, is_directory, kind)) in entries.iter().enumerate() {
            let Ok(mut stream) = incoming.stream() else { break };
            let content = number.to_le_bytes();
            let tar = match (is_directory, kind) {
                (true, _) => Tar::default().directory(path),
                (false, b'0') => Tar::default().file(path.as_bytes(), &content),
                (false, kind) => Tar::default().header(path.as_bytes(), octal(0), *kind),
            };
            if let Ok(sealed) = stream.write(&tar.end()) {
                for file in sealed {
                    let stored = folder.path().join("data.master.incoming");
                    let stored = stored.join(file.path.to_string());
                    prop_assert_eq!(std::fs::read(stored).unwrap(), content);
                }
            }
        }
        prop_assert_eq!(above(folder.path()), before);
        drop(incoming);
        prop_assert_eq!(leftovers(folder.path()), [""; 0]);
    }

    /// FAULTS 65: any bytes that Linux takes as a name arrive as they were sent.
    #[test]
    fn fault_65_names_of_any_bytes_and_lengths_arrive_exactly(
        files in btree_map((file_name(), file_name()), vec(any::<u8>(), 0..1_500), 1..8)
    ) {
        use std::os::unix::ffi::OsStrExt;
        let folder = scratch_folder();
        prepare(folder.path());
        let sets = real_sets(folder.path());
        let incoming = sets.begin(&lease(&sets).unwrap()).unwrap();
        let mut tar = Tar::default();
        for ((directory, name), content) in &files {
            tar = tar.file(&[b"base", &directory[..], name].join(&b'/'), content);
        }
        let sealed = write(&incoming, &tar.end()).unwrap();
        prop_assert_eq!(sealed.len(), files.len());
        for ((directory, name), content) in &files {
            let path = RelativePath::new(&[b"base", &directory[..], name].join(&b'/')).unwrap();
            let stored = std::ffi::OsStr::from_bytes(path.as_bytes());
            let stored = folder.path().join("data.master.incoming").join(stored);
            prop_assert_eq!(&std::fs::read(stored).unwrap(), content);
            let found = sealed.iter().any(|file| file.path == path);
            prop_assert!(found);
        }
    }

    #[test]
    fn a_stream_reads_the_same_however_it_is_cut(
        at in 0..6_000_usize, byte: u8, piece in 1..700_usize
    ) {
        let mut stream = sample_stream(1);
        let at = at % stream.len();
        stream[at] = byte;
        let whole = steps(&stream, stream.len());
        prop_assert_eq!(steps(&stream, piece), whole);
    }
}
