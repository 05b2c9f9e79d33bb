//! The index of an archive's names: who believes it, and what it spares.
//! Never talks to a server. Invariant tested: with an index, without one, with a damaged or an old one, the archive gives the
//! same answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::folder::Folder;
use super::health::Monitor;
use super::held_names::HeldNames;
use super::reader::ArchiveListing;
use super::survey::survey;

use super::testing::{
    FaultyDisk, Op, assert_stored, new_archive, open, real, scratch_folder, segment,
};
use super::*;
use crate::config::StoreCompression;
use walmgr_protocol::names::{SegmentName, WalFileName, WalSegmentSize};

/// How long a receiver may take until its index is right again.
const PATIENCE: Duration = Duration::from_secs(20);

fn index_path(places: &ArchiveFolders) -> PathBuf {
    places.completed_wals.join(".names/index")
}

fn completed(places: &ArchiveFolders) -> Folder {
    Folder::open_completed(&places.completed_wals, real(), Arc::new(Monitor::new())).unwrap()
}

fn size(archive: &Archive) -> WalSegmentSize {
    archive.binding().unwrap().segment_size
}

/// Waits until the index is right, and says what it holds.
fn indexed(folder: &Folder) -> HeldNames {
    let begun = Instant::now();
    loop {
        if let Some(names) = folder.indexed() {
            return names;
        }
        assert!(begun.elapsed() < PATIENCE, "no index is right");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn listing(places: &ArchiveFolders) -> ArchiveListing {
    let reader = ArchiveReader::open(&places.completed_wals, real()).unwrap();
    reader.listing().unwrap()
}

/// An archive of three segments, one of them packed, a history and a damaged copy, whose index was right at its end.
fn indexed_archive(root: &Path) -> (ArchiveFolders, Archive) {
    let places = new_archive(root);
    let archive = open(&places);
    assert_stored(&archive, &segment(3, 7));
    archive.set_compression(StoreCompression::default());
    assert_stored(&archive, &segment(4, 8));
    assert_stored(&archive, &segment(6, 9));
    let put =
        |name: &str| fs::write(places.completed_wals.join(name), b"1\t0/7000000\twhy\n").unwrap();
    put("00000002.history");
    put("000000010000000000000005.damaged");
    let keeper = IndexKeeper::start().unwrap();
    let kept = archive.keep_index(&keeper).unwrap();
    indexed(&completed(&places));
    drop((kept, keeper));
    (places, archive)
}

/// An archive of one segment, the folder as others open it, and what keeps its index, which is right.
fn kept_archive(root: &Path) -> (ArchiveFolders, Archive, Folder, (IndexKeeper, KeptIndex)) {
    let places = new_archive(root);
    let archive = open(&places);
    assert_stored(&archive, &segment(3, 7));
    let keeper = IndexKeeper::start().unwrap();
    let kept = archive.keep_index(&keeper).unwrap();
    let looked_at = completed(&places);
    indexed(&looked_at);
    (places, archive, looked_at, (keeper, kept))
}

#[test]
fn fault_280_an_index_says_what_a_listing_says_whoever_changes_the_folder() {
    let folder = scratch_folder();
    let (places, archive, looked_at, _kept) = kept_archive(folder.path());
    let at = |name: &str| places.completed_wals.join(name);
    let steps: [&dyn Fn(); 8] = [
        &|| (4..40).for_each(|number| assert_stored(&archive, &segment(number, 7))),
        &|| fs::remove_file(at("000000010000000000000011")).unwrap(),
        &|| fs::write(at("000000020000000000000030"), b"by hand").unwrap(),
        &|| fs::write(at("0000000200000000000000FF.zst"), b"by hand").unwrap(),
        &|| {
            fs::rename(
                at("000000010000000000000012"),
                at("000000010000000000000012.damaged"),
            )
            .unwrap()
        },
        // Each of the two names stays.
        &|| {
            let here = rustix::fs::CWD;
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let (one, other) = (
                at("000000020000000000000030"),
                at("000000010000000000000012.damaged"),
            );
            rustix::fs::renameat_with(here, one, here, other, exchange).unwrap();
        },
        &|| fs::create_dir(at("a folder")).unwrap(),
        &|| fs::write(at("0 of another system\r"), b"").unwrap(),
    ];
    for step in steps {
        step();
        // At once, and later out of the index.
        let expected = HeldNames::list(&looked_at, size(&archive)).unwrap();
        assert_eq!(
            looked_at.held(size(&archive)).unwrap(),
            (expected.segments(), expected.others())
        );
        assert_eq!(indexed(&looked_at), expected);
    }
}

#[test]
fn fault_280_nothing_is_written_into_a_folder_that_took_the_place() {
    let folder = scratch_folder();
    let (places, _archive, looked_at, _kept) = kept_archive(folder.path());
    let aside = places.completed_wals.with_extension("aside");
    fs::rename(&places.completed_wals, &aside).unwrap();
    fs::create_dir(&places.completed_wals).unwrap();
    fs::remove_dir_all(aside.join(".names")).unwrap();
    // Its own folder has an index again.
    indexed(&looked_at);
    fs::remove_dir(&places.completed_wals).unwrap();
}

#[test]
fn fault_281_an_index_that_does_not_fit_is_not_believed() {
    let folder = scratch_folder();
    let (places, _archive) = indexed_archive(folder.path());
    let looked_at = completed(&places);
    let right = fs::read(index_path(&places)).unwrap();
    let expected = listing(&places);
    assert!(looked_at.indexed().is_some());
    let text = String::from_utf8(right.clone()).unwrap();
    let again = |said: &str| {
        let said = said.rsplit_once("check ").unwrap().0;
        format!("{said}check {:08X}\n", crc32fast::hash(said.as_bytes()))
    };
    assert_eq!(again(&text), text);
    let boot = text.lines().nth(2).unwrap();
    let folder_line = text.lines().nth(1).unwrap();
    let (before_last, _) = folder_line.rsplit_once(' ').unwrap();
    let wrong = [
        String::new(),
        text[..text.len() / 2].to_owned(),
        again(&text.replace(boot, "boot b9cf12a3-27be-4bb7-bd5c-0a81b0ba5c70")),
        again(&text.replace(folder_line, &format!("{before_last} 1"))),
        again(&text.replace("walmgr names 1", "walmgr names 2")),
        text.replace("000000010000000000000003", "000000010000000000000002"),
    ];
    for wrong in wrong {
        fs::write(index_path(&places), &wrong).unwrap();
        assert_eq!(looked_at.indexed(), None, "{wrong}");
        assert_eq!(listing(&places), expected);
    }
    // What is right and of another folder: a copy of the archive with all its times.
    fs::write(index_path(&places), &right).unwrap();
    assert!(looked_at.indexed().is_some());
    fs::remove_file(places.completed_wals.join("00000002.history")).unwrap();
    assert_eq!(looked_at.indexed(), None);
    assert!(
        !listing(&places)
            .others
            .contains(&"00000002.history".parse().unwrap())
    );
    fs::remove_dir_all(index_path(&places).parent().unwrap()).unwrap();
    assert_eq!(looked_at.indexed(), None);
}

#[test]
fn no_command_lists_an_archive_whose_index_is_right() {
    let folder = scratch_folder();
    let (places, archive) = indexed_archive(folder.path());
    drop(archive);
    let disk = FaultyDisk::over(real());
    let counted: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
    // A start that finds all as it was.
    let archive = Archive::open(&places, Arc::clone(&counted)).unwrap();
    assert_eq!(
        archive.newest_segment().unwrap(),
        Some("000000010000000000000006".parse().unwrap())
    );
    assert_eq!(archive.list(None, 2).unwrap().len(), 2);
    survey(&places, None, &counted, None).unwrap();
    let reader = ArchiveReader::open(&places.completed_wals, Arc::clone(&counted)).unwrap();
    let absent: SegmentName = "000000010000000000000007".parse().unwrap();
    assert_eq!(
        reader.absence(WalFileName::Segment(absent)).unwrap(),
        Absence::Proven
    );
    reader.lineage(&[]).unwrap();
    let mut rounds = archive.rounds(None).unwrap();
    while !rounds.step().unwrap().is_round_done {}
    let name = places.completed_wals.file_name().unwrap().to_string_lossy();
    let listed = disk.log().into_iter();
    assert_eq!(
        listed
            .filter(|(op, about)| *op == Op::Names && *about == name)
            .count(),
        0
    );
}

#[test]
fn a_page_of_a_list_goes_on_behind_the_one_before() {
    let folder = scratch_folder();
    let (places, archive) = indexed_archive(folder.path());
    fs::write(
        places
            .completed_wals
            .join("000000010000000000000006.partial"),
        b"",
    )
    .unwrap();
    let all: Vec<_> = archive.list(None, usize::MAX).unwrap();
    assert_eq!(all.len(), 5);
    let mut paged = Vec::new();
    while let Some(next) = archive
        .list(paged.last().map(|it: &archive::StoredFile| it.name), 1)
        .unwrap()
        .pop()
    {
        paged.push(next);
    }
    assert_eq!(paged, all);
    assert!(paged.windows(2).all(|two| two[0].name < two[1].name));
}
