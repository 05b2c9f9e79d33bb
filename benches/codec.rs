//! What a byte costs between the file and the socket: checksums, frames, zstd.
//! Never touches a disk or a socket.

mod wal_like;

use std::hint::black_box;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use walmgr_protocol::codec::{Decoder, Encoder};
use walmgr_protocol::compress::{Block, Packer, Unpacker};
use walmgr_protocol::limits::{BLOCK_BYTES_DEFAULT, FRAME_PAYLOAD_BYTES};

const BLOCK_BYTES: usize = BLOCK_BYTES_DEFAULT as usize;

/// Blocks in the stream that the decoder gets: 4 MiB.
const BLOCKS: usize = 16;

fn pack(packer: &mut Packer, buffer: Vec<u8>, raw: &[u8], offset: u64) -> Block {
    let filled = packer.pack(buffer, offset, |buffer| {
        buffer.extend_from_slice(raw);
        Ok::<(), std::convert::Infallible>(())
    });
    match filled {
        Ok(block) => block,
        Err(never) => match never {},
    }
}

fn checksums(criterion: &mut Criterion) {
    let segment = wal_like::segment();
    let block = &segment[..BLOCK_BYTES];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    group.bench_function("CRC-32 of frames and files", |bencher| {
        bencher.iter(|| crc32fast::hash(black_box(block)));
    });
    group.bench_function("CRC-32C of WAL records", |bencher| {
        bencher.iter(|| crc32c::crc32c(black_box(block)));
    });
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let segment = wal_like::segment();
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    let mut block = pack(&mut Packer::new(0), Vec::new(), &segment[..BLOCK_BYTES], 0);
    let mut encoder = Encoder::new(0);
    group.bench_function("encode a block", |bencher| {
        bencher.iter(|| encoder.encode_block(1, black_box(&mut block)).len());
    });
    let mut stream = BytesMut::new();
    let mut encoder = Encoder::new(0);
    for raw in segment.chunks(BLOCK_BYTES).take(BLOCKS) {
        let mut block = pack(&mut Packer::new(0), Vec::new(), raw, 0);
        stream.extend_from_slice(encoder.encode_block(1, &mut block));
    }
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("decode a stream of blocks", |bencher| {
        let decode = |mut stream: BytesMut| {
            let mut decoder = Decoder::new(0, FRAME_PAYLOAD_BYTES);
            let mut frames = 0;
            while let Ok(Some(frame)) = decoder.decode(&mut stream) {
                black_box(frame);
                frames += 1;
            }
            assert_eq!(frames, BLOCKS);
        };
        bencher.iter_batched(|| stream.clone(), decode, BatchSize::LargeInput);
    });
    group.finish();
}

fn zstd(criterion: &mut Criterion) {
    let segment = wal_like::segment();
    let raw = &segment[8 << 20..][..BLOCK_BYTES];
    let mut group = criterion.benchmark_group("zstd");
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    for level in [1, 3, 9] {
        let mut packer = Packer::new(level);
        let packed = pack(&mut packer, Vec::new(), raw, 0);
        let percent = packed.payload().len() * 100 / BLOCK_BYTES;
        let mut buffer = Vec::new();
        group.bench_function(format!("pack, level {level} (to {percent} %)"), |bencher| {
            bencher.iter(|| {
                buffer =
                    pack(&mut packer, std::mem::take(&mut buffer), black_box(raw), 0).into_buffer();
            });
        });
        let mut unpacker = Unpacker::default();
        group.bench_function(format!("unpack, level {level}"), |bencher| {
            bencher.iter(|| {
                let unpacked =
                    unpacker.unpack(black_box(packed.payload()), packed.raw_bytes, packed.zstd);
                assert!(unpacked.is_ok_and(|bytes| bytes.len() == BLOCK_BYTES));
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

criterion_group! { name = benches; config = quick(); targets = checksums, frames, zstd }
criterion_main!(benches);
