//! Files that are so long that several threads take them over, a slice each.
//! Never needs a server: the set is made up. Invariant tested: what comes of one is what a single reading of it finds, and
//! a bit that the parent lost is found in whichever slice it was.

use std::collections::BTreeSet;
use std::sync::Arc;

use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::patch::{PAGE_BYTES, TAR_PATCH_KEYWORD, put_look, put_pages};

use super::SetError;
use super::testing::{PAGES_FILE, Tar, back_up, lease, path, prepare, real_sets, wal_proof, write};
use crate::files::slices::SLICE_BYTES;
use crate::pg::page;
use crate::store::testing::scratch_folder;

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Each page is another one, and one in eight is a hole.
fn long_content(len: u64) -> Vec<u8> {
    let pages = 0..len / PAGE_BYTES;
    let content = pages.flat_map(|page| {
        let first = u8::try_from(page % 8).unwrap();
        let mut bytes = vec![first; at(PAGE_BYTES)];
        if first > 0 {
            bytes[..8].copy_from_slice(&page.to_le_bytes());
        }
        bytes
    });
    content.collect()
}

#[test]
fn fault_240_a_long_file_is_what_one_reading_of_it_finds() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 1, &wal).unwrap();
    let old_len = 2 * SLICE_BYTES + 3 * PAGE_BYTES;
    let old = long_content(old_len);
    let listed = FileDigest {
        len: old_len,
        crc32c: crc32c::crc32c(&old),
    };
    let parent = sets.newest_as_parent().unwrap();
    let parent = Arc::new(parent.listing(path(PAGES_FILE), listed));
    // What was read ahead counts for nothing.
    parent.read_ahead();
    let edge = SLICE_BYTES / PAGE_BYTES;
    for new_len in [old_len, old_len + SLICE_BYTES, SLICE_BYTES + PAGE_BYTES] {
        let mut expected = old.clone();
        expected.resize(at(new_len), 0);
        let mut patch = Vec::new();
        let mut blocks = vec![3, edge - 1, edge, new_len / PAGE_BYTES - 1];
        blocks.dedup();
        for block in blocks {
            let page = vec![0xA5; at(PAGE_BYTES)];
            put_pages(&mut patch, u32::try_from(block).unwrap(), 1);
            patch.extend_from_slice(&page);
            expected[at(block * PAGE_BYTES)..][..page.len()].copy_from_slice(&page);
        }
        let len = new_len.to_string();
        let tar = Tar::default().directory("base/").directory("base/1/");
        let tar = tar.pax(&[(TAR_PATCH_KEYWORD.as_bytes(), len.as_bytes())]);
        let stream = tar.file(PAGES_FILE.as_bytes(), &patch).end();
        let build = |damaged: Option<u64>| {
            let mut content = old.clone();
            if let Some(offset) = damaged {
                content[at(offset)] ^= 1;
            }
            std::fs::write(folder.path().join("data.master").join(PAGES_FILE), &content).unwrap();
            let incoming = sets.begin(&lease).unwrap();
            incoming.build_on(&parent);
            let made = write(&incoming, &stream).map(|sealed| sealed[0].digest)?;
            let file = folder.path().join("data.master.incoming").join(PAGES_FILE);
            Ok::<_, SetError>((made, std::fs::read(file).unwrap()))
        };
        let (made, content) = build(None).unwrap();
        assert!(content == expected, "{new_len}");
        let (len, crc32c) = (new_len, crc32c::crc32c(&expected));
        assert_eq!(made, FileDigest { len, crc32c });
        if new_len > old_len {
            continue;
        }
        // Where nothing was written, below a page that was, on both sides of an edge, and in the last page.
        let edge = SLICE_BYTES;
        for offset in [
            9,
            3 * PAGE_BYTES,
            edge - 1,
            edge,
            edge + PAGE_BYTES,
            old_len - 1,
        ] {
            let unfit = build(Some(offset)).unwrap_err();
            assert!(
                matches!(unfit, SetError::ParentUnfit { .. }),
                "{offset}: {unfit}"
            );
        }
    }
}

#[test]
fn fault_208_a_page_that_is_looked_at_is_compared_wherever_it_lies() {
    let folder = scratch_folder();
    prepare(folder.path());
    let wal = wal_proof(folder.path());
    let sets = real_sets(folder.path());
    let lease = lease(&sets).unwrap();
    back_up(&sets, &lease, 1, &wal).unwrap();
    let len = SLICE_BYTES + 40 * PAGE_BYTES;
    let old = long_content(len);
    let crc32c = crc32c::crc32c(&old);
    let parent = sets.newest_as_parent().unwrap();
    let parent = Arc::new(parent.listing(path(PAGES_FILE), FileDigest { len, crc32c }));
    std::fs::write(folder.path().join("data.master").join(PAGES_FILE), &old).unwrap();
    // In a piece with a page that is written, at both sides of an edge, and the last.
    let edge = SLICE_BYTES / PAGE_BYTES;
    let (written, looked) = (edge + 2, [1, 2, 700, edge - 1, edge, edge + 3, edge + 39]);
    let build = |other: Option<u64>| {
        let mut patch = Vec::new();
        for block in looked.into_iter().chain([written]).collect::<BTreeSet<_>>() {
            let number = u32::try_from(block).unwrap();
            let page = old[at(block * PAGE_BYTES)..].first_chunk().unwrap();
            let mut look = page::look(page);
            if block == written {
                put_pages(&mut patch, number, 1);
                patch.extend_from_slice(page);
                continue;
            }
            look.lsn.0 ^= u64::from(other == Some(block));
            put_look(&mut patch, number, look);
        }
        let tar = Tar::default().directory("base/").directory("base/1/");
        let tar = tar.pax(&[(TAR_PATCH_KEYWORD.as_bytes(), len.to_string().as_bytes())]);
        let stream = tar.file(PAGES_FILE.as_bytes(), &patch).end();
        let incoming = sets.begin(&lease).unwrap();
        incoming.build_on(&parent);
        write(&incoming, &stream).map(|sealed| sealed[0].digest)
    };
    assert_eq!(build(None).unwrap(), FileDigest { len, crc32c });
    for block in looked {
        let refused = build(Some(block)).unwrap_err();
        let named = format!("block {block} is not the same");
        assert!(
            matches!(&refused, SetError::PageDiffers { what } if what.contains(&named)),
            "{block}: {refused}"
        );
    }
}
