//! Fields of a message: taken off the front of a payload, or appended to one.
//! Never reads past the payload. Invariant: no string is longer than its bound on either side.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::Malformed;
use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, STRING_BYTES_MAX};
use crate::names::{RelativePath, SegmentName, TimelineId, WalFileName};

/// Appends a string behind its length, cut at a character below the bound.
pub(crate) fn put_string(out: &mut BytesMut, text: &str) {
    let len = text.floor_char_boundary(STRING_BYTES_MAX);
    out.put_u16_le(u16::try_from(len).unwrap_or(0));
    out.put_slice(&text.as_bytes()[..len]);
}

/// Appends a path behind its length.
pub(crate) fn put_path(out: &mut BytesMut, path: &RelativePath) {
    let bytes = path.as_bytes();
    // No path is longer than PATH_BYTES_MAX.
    out.put_u16_le(u16::try_from(bytes.len()).unwrap_or(0));
    out.put_slice(bytes);
}

/// Appends bytes behind their length, cut at the bound.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8], most: usize) {
    let bytes = &bytes[..bytes.len().min(most)];
    out.put_u16_le(u16::try_from(bytes.len()).unwrap_or(0));
    out.put_slice(bytes);
}

/// Takes fields off the front of a payload, none of them longer than its bound.
pub(crate) struct Fields {
    what: &'static str,
    left: Bytes,
}

impl Fields {
    pub(crate) fn new(what: &'static str, payload: Bytes) -> Self {
        Fields {
            what,
            left: payload,
        }
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, Malformed> {
        if self.left.len() < bytes {
            return Err(Malformed::CutShort { what: self.what });
        }
        Ok(self.left.split_to(bytes))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(&bytes[..]).map_err(|_| Malformed::CutShort { what: self.what })
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    /// A field that was added behind those of the first release: `default` where it is missing.
    pub(crate) fn added_u8(&mut self, default: u8) -> Result<u8, Malformed> {
        match self.left.is_empty() {
            true => Ok(default),
            false => self.u8(),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_le_bytes)
    }

    pub(crate) fn boolean(&mut self, what: &'static str) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(Malformed::BadValue {
                what,
                found: u64::from(found),
            }),
        }
    }

    pub(crate) fn timeline(&mut self) -> Result<TimelineId, Malformed> {
        TimelineId::new(self.u32()?).ok_or(Malformed::BadValue {
            what: "timeline",
            found: 0,
        })
    }

    pub(crate) fn string(&mut self, what: &'static str) -> Result<String, Malformed> {
        self.bounded_string(what, STRING_BYTES_MAX)
    }

    pub(crate) fn name(&mut self) -> Result<String, Malformed> {
        self.bounded_string("a file name", NAME_BYTES_MAX)
    }

    pub(crate) fn optional_name(&mut self) -> Result<Option<WalFileName>, Malformed> {
        let text = self.name()?;
        if text.is_empty() {
            Ok(None)
        } else {
            Ok(Some(text.parse()?))
        }
    }

    pub(crate) fn optional_segment(&mut self) -> Result<Option<SegmentName>, Malformed> {
        let text = self.name()?;
        if text.is_empty() {
            Ok(None)
        } else {
            Ok(Some(text.parse()?))
        }
    }

    pub(crate) fn path(&mut self) -> Result<RelativePath, Malformed> {
        Ok(RelativePath::new(&self.bytes("a path", PATH_BYTES_MAX)?)?)
    }

    pub(crate) fn bytes(&mut self, what: &'static str, most: usize) -> Result<Bytes, Malformed> {
        let len = usize::from(self.u16()?);
        if len > most {
            return Err(Malformed::TooLong {
                what,
                most: most as u64,
                found: len as u64,
            });
        }
        self.take(len)
    }

    fn bounded_string(&mut self, what: &'static str, most: usize) -> Result<String, Malformed> {
        let bytes = self.bytes(what, most)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::NotText { what })
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.left)
    }

    pub(crate) fn end(self) -> Result<(), Malformed> {
        match self.left.len() {
            0 => Ok(()),
            bytes => Err(Malformed::Surplus {
                what: self.what,
                bytes,
            }),
        }
    }
}
