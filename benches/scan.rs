//! What checking a byte of WAL costs, as the receiver checks it while a segment arrives.
//! Never touches a disk.

mod wal_like;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walmgr::test_support::wal::segment::{ExpectedSegment, SegmentCheck, Verify};
use walmgr_protocol::limits::BLOCK_BYTES_DEFAULT;
use walmgr_protocol::names::{SystemId, WalFileName, WalSegmentSize};

/// The segments of a folder that `WALMGR_BENCH_WAL` names, made by a server, or one that looks like them.
fn segments() -> Vec<(WalFileName, Vec<u8>)> {
    let Some(folder) = std::env::var_os("WALMGR_BENCH_WAL") else {
        let name = wal_like::SEGMENT.parse().expect("it is a segment's name");
        return vec![(name, wal_like::segment())];
    };
    let entries = std::fs::read_dir(folder).expect("WALMGR_BENCH_WAL is a folder");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let segment = |path: std::path::PathBuf| {
        let name: WalFileName = path.file_name()?.to_str()?.parse().ok()?;
        let bytes = std::fs::read(&path).ok()?;
        matches!(name, WalFileName::Segment(_)).then_some((name, bytes))
    };
    paths.filter_map(segment).collect()
}

fn scan(criterion: &mut Criterion) {
    let segments = segments();
    // `xlp_sysid` of the first page.
    let system_id = (segments[0].1[24..].first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
    let expected = ExpectedSegment {
        system_id: SystemId(system_id.expect("a segment is longer")),
        segment_size: WalSegmentSize::DEFAULT,
        postgres_major: None,
    };
    let mut group = criterion.benchmark_group("scan");
    let bytes: usize = segments.iter().map(|(_, bytes)| bytes.len()).sum();
    group.throughput(Throughput::Bytes(bytes as u64));
    for (name, verify, notes_changes) in [
        ("verify_wal = records", Verify::Records, false),
        ("verify_wal = records, with maps", Verify::Records, true),
        ("verify_wal = headers", Verify::Headers, false),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for (name, segment) in black_box(&segments) {
                    let mut check = SegmentCheck::new(*name, &expected, verify);
                    if notes_changes {
                        check = check.noting_changes();
                    }
                    for block in segment.chunks(BLOCK_BYTES_DEFAULT as usize) {
                        check.update(block).expect("the segment is valid");
                    }
                    check.finish().expect("the segment is valid");
                }
            });
        });
    }
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = quick(); targets = scan }
criterion_main!(benches);
