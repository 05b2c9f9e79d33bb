//! What the packed form of a segment promises.
//! Never touches the disk. Invariant tested: what unpacks is what was packed, and no changed, missing or added byte
//! passes.

use super::*;
use proptest::prelude::*;
use std::io::Read;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::message::Data;

/// Bytes that shrink, but not to nothing.
fn sample(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] & 3
    };
    (0..bytes).map(|_| next()).collect()
}

fn packed(raw: &[u8]) -> Vec<u8> {
    let (mut packer, mut file) = (SegmentPacker::new(1), Vec::new());
    let mut put = |stored: &[u8]| {
        file.extend_from_slice(stored);
        Ok::<(), PackedFault>(())
    };
    for piece in raw.chunks(100_000) {
        packer.add(piece, &mut put).unwrap();
    }
    packer.finish(crc32fast::hash(raw), &mut put).unwrap();
    file
}

/// A block as it travels.
fn travelling(raw: &[u8], packed: Option<Vec<u8>>) -> Data {
    Data {
        offset: 0,
        raw_bytes: u32::try_from(raw.len()).unwrap(),
        zstd: packed.is_some(),
        bytes: packed.unwrap_or_else(|| raw.to_vec()).into(),
    }
}

/// Packs blocks as they came, and what is between them.
fn packed_of(blocks: &[Data], raw: &[u8]) -> Vec<u8> {
    let (mut packer, mut file) = (SegmentPacker::new(1), Vec::new());
    let mut put = |stored: &[u8]| {
        file.extend_from_slice(stored);
        Ok::<(), PackedFault>(())
    };
    let mut unpacker = Unpacker::default();
    for block in blocks {
        let block = unpacker
            .unpack_block(&block.bytes, block.raw_bytes, block.zstd)
            .unwrap();
        packer.add_block(&block, &mut put).unwrap();
    }
    packer.finish(crc32fast::hash(raw), &mut put).unwrap();
    file
}

/// What a reader makes of it.
fn read(file: &[u8]) -> Result<Vec<u8>, PackedFault> {
    let mut raw = Vec::new();
    let Some(tail_bytes) = SeekTable::tail_bytes(file)? else {
        let mut unpacker = ForeignUnpacker::new()?;
        for piece in file.chunks(1000) {
            unpacker.update(piece, |piece| {
                raw.extend_from_slice(piece);
                true
            })?;
        }
        return unpacker.finish().map(|()| raw);
    };
    let tail = file.len().checked_sub(tail_bytes);
    let tail = tail.ok_or_else(|| PackedFault("it is short".to_owned()))?;
    let table = SeekTable::parse(file.len() as u64, &file[tail..])?;
    let mut unpacker = BlockUnpacker::new();
    for block in &table.blocks {
        let at = usize::try_from(block.offset_bytes).unwrap();
        raw.extend_from_slice(unpacker.unpack(block, &file[at..at + block.bytes as usize])?);
    }
    table.check_whole(0, crc32fast::hash(&raw))?;
    Ok(raw)
}

#[test]
fn what_is_packed_unpacks_to_the_same_here_and_by_any_zstd() {
    for bytes in [1, 8192, PACKED_BLOCK_BYTES, (1 << 20) + 77] {
        let raw = sample(bytes);
        let file = packed(&raw);
        assert_eq!(read(&file).unwrap(), raw);
        assert_eq!(zstd::stream::decode_all(&file[..]).unwrap(), raw);
    }
}

#[test]
fn one_block_is_read_alone() {
    let raw = sample(1 << 20);
    let file = packed(&raw);
    let tail_bytes = SeekTable::tail_bytes(&file).unwrap().unwrap();
    let tail = &file[file.len() - tail_bytes..];
    let table = SeekTable::parse(file.len() as u64, tail).unwrap();
    let third = table.blocks[2];
    let at = usize::try_from(third.offset_bytes).unwrap();
    let mut unpacker = BlockUnpacker::new();
    let block = unpacker.unpack(&third, &file[at..at + third.bytes as usize]);
    let from = 2 * PACKED_BLOCK_BYTES;
    assert_eq!(block.unwrap(), &raw[from..from + PACKED_BLOCK_BYTES]);
}

#[test]
fn a_segment_of_zeros_takes_less_than_a_page() {
    let file = packed(&vec![0; 16 << 20]);
    assert!(file.len() <= 4096, "{} bytes", file.len());
}

#[test]
fn a_block_that_came_packed_is_stored_as_it_came() {
    let raw = sample(2 * PACKED_BLOCK_BYTES);
    let (first, second) = raw.split_at(PACKED_BLOCK_BYTES);
    let came = zstd::bulk::compress(first, 7).unwrap();
    let blocks = [
        travelling(first, Some(came.clone())),
        travelling(second, None),
    ];
    let file = packed_of(&blocks, &raw);
    assert_eq!(file[..came.len()], came);
    assert_eq!(read(&file).unwrap(), raw);
}

#[test]
fn fault_235_blocks_stand_in_the_order_in_which_they_came() {
    // Slow ones, quick ones, and such as need no packing.
    let raw: Vec<u8> = (0..12)
        .flat_map(|number: u8| match number % 3 {
            0 => vec![number; PACKED_BLOCK_BYTES],
            _ => sample(PACKED_BLOCK_BYTES + usize::from(number)).split_off(usize::from(number)),
        })
        .collect();
    let blocks: Vec<Data> = raw
        .chunks(PACKED_BLOCK_BYTES)
        .enumerate()
        .map(|(number, block)| {
            let packed = number % 4 == 1;
            travelling(
                block,
                packed.then(|| zstd::bulk::compress(block, 1).unwrap()),
            )
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(read(&packed_of(&blocks, &raw)).unwrap(), raw);
    }
    // Blocks of another length than the file's are cut anew.
    let short: Vec<Data> = raw.chunks(100_000).map(|b| travelling(b, None)).collect();
    assert_eq!(packed_of(&short, &raw), packed(&raw));
}

#[test]
fn fault_236_segments_that_are_packed_at_once_wait_for_none_of_the_others() {
    let raw = sample(1 << 20);
    let whole = packed(&raw);
    std::thread::scope(|scope| {
        for number in 0..24 {
            let (raw, whole) = (&raw, &whole);
            scope.spawn(move || {
                // Every third is given up with blocks on their way.
                if number % 3 == 0 {
                    let mut packer = SegmentPacker::new(1);
                    let mut no_room = |_: &[u8]| Err(PackedFault("no room".to_owned()));
                    assert!(packer.add(raw, &mut no_room).is_err());
                } else {
                    assert_eq!(packed(raw), *whole);
                }
            });
        }
    });
}

#[test]
fn threads_that_pack_end_when_there_is_nothing_to_pack() {
    packed(&sample(1 << 20));
    assert!(beside::threads_running() <= beside::threads_max());
    let begun = std::time::Instant::now();
    while beside::threads_running() > 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // The next one starts them again.
    let raw = sample(1 << 20);
    assert_eq!(read(&packed(&raw)).unwrap(), raw);
}

#[test]
fn fault_195_a_flipped_bit_is_found_wherever_it_is() {
    let raw = sample(300_000);
    let file = packed(&raw);
    let tail = SeekTable::tail_bytes(&file).unwrap().unwrap();
    // Every bit of the ends, and some of each block.
    let step = |byte: usize| byte < 64 || byte + tail + 64 > file.len() || byte.is_multiple_of(997);
    for byte in (0..file.len()).filter(|byte| step(*byte)) {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[byte] ^= 1 << bit;
            assert!(read(&flipped).is_err(), "bit {bit} of byte {byte}");
        }
    }
}

#[test]
fn fault_196_a_file_cut_short_or_with_something_behind_is_found() {
    let raw = sample(600_000);
    let file = packed(&raw);
    for bytes in
        (0..file.len()).filter(|bytes| bytes.is_multiple_of(101) || bytes + 400 > file.len())
    {
        // Whole blocks without their table are a file that somebody else may have packed; its length tells.
        let short = read(&file[..bytes]);
        assert!(short.is_err() || short.is_ok_and(|short| raw.starts_with(&short)));
    }
    for behind in [&[0_u8][..], b"more", &[0; 4096], &file] {
        let longer = [&file[..], behind].concat();
        assert!(read(&longer).is_err(), "{} bytes behind", behind.len());
    }
}

#[test]
fn fault_197_what_would_unpack_to_too_much_is_refused() {
    // A frame that says it needs a window of 64 MiB, and one of 2 GiB of zeros.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(26).unwrap();
    std::io::copy(&mut std::io::repeat(7).take(1 << 20), &mut encoder).unwrap();
    let wide = encoder.finish().unwrap();
    assert!(read(&wide).unwrap_err().to_string().contains("8 MiB"));
    let mut unpacker = BlockUnpacker::new();
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(unpacker.unpack_exactly(&bomb, PACKED_BLOCK_BYTES).is_err());
}

#[test]
fn a_file_that_zstd_packed_by_hand_is_read() {
    let raw = sample(1 << 20);
    let (one, other) = raw.split_at(500_000);
    let by_hand = |raw: &[u8]| zstd::stream::encode_all(raw, 3).unwrap();
    assert_eq!(read(&by_hand(&raw)).unwrap(), raw);
    assert_eq!(read(&[by_hand(one), by_hand(other)].concat()).unwrap(), raw);
    let with_more = [by_hand(&raw), b"\x50\x2A\x4D\x18\x01\0\0\0x".to_vec()].concat();
    assert!(read(&with_more).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        crate::store::fuzzing::packed_segment(&bytes);
    }
}
