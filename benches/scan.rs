//! What checking a byte of WAL costs, as the receiver checks it while a segment arrives.
//! Never touches a disk.

mod wal_like;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walmgr::test_support::wal::segment::{ExpectedSegment, SegmentCheck, Verify};
use walmgr_protocol::limits::BLOCK_BYTES_DEFAULT;
use walmgr_protocol::names::{WalFileName, WalSegmentSize};

fn scan(criterion: &mut Criterion) {
    let segment = wal_like::segment();
    let name: WalFileName = wal_like::SEGMENT.parse().expect("it is a segment's name");
    let expected = ExpectedSegment {
        system_id: wal_like::SYSTEM_ID,
        segment_size: WalSegmentSize::DEFAULT,
        postgres_major: Some(wal_like::MAJOR),
    };
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Bytes(segment.len() as u64));
    for verify in [Verify::Records, Verify::Headers] {
        group.bench_function(format!("verify_wal = {verify}"), |bencher| {
            bencher.iter(|| {
                let mut check = SegmentCheck::new(name, &expected, verify);
                for block in black_box(&segment).chunks(BLOCK_BYTES_DEFAULT as usize) {
                    check.update(block).expect("the segment is valid");
                }
                check.finish().expect("the segment is valid")
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
