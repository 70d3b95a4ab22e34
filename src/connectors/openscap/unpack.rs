//! The bytes of a document, plain or gzip, with a bound on what they swell to.

use flate2::read::MultiGzDecoder;
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

/// What one document may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of it at most, packed and unpacked.
    pub(super) max_bytes: u64,
    /// Bytes that one packed byte may unpack to on average, at most.
    pub(super) max_ratio: u64,
}

/// No result of a host is near it: with the whole data stream and all of OVAL in it, one has some tens of megabytes.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 512 << 20;
/// Little text that repeats itself packs very well.
const FREE: u64 = 1 << 20;
const BUFFER: usize = 64 << 10;

/// The document in `raw`, unpacked if its first bytes say that it is packed, whatever it is called.
pub(super) fn unpack<'a>(raw: impl Read + 'a, limits: Limits) -> io::Result<Box<dyn BufRead + 'a>> {
    let packed = Rc::new(Cell::new(0));
    let mut raw = BufReader::with_capacity(BUFFER, Counted { raw, read: packed.clone() });
    let is_gzip = raw.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip {
        let unpacked = Bounded { inner: MultiGzDecoder::new(raw), packed: Some(packed), read: 0, limits };
        Box::new(BufReader::with_capacity(BUFFER, unpacked))
    } else {
        Box::new(BufReader::with_capacity(BUFFER, Bounded { inner: raw, packed: None, read: 0, limits }))
    })
}

struct Counted<R> {
    raw: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.raw.read(buffer)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

struct Bounded<R> {
    inner: R,
    packed: Option<Rc<Cell<u64>>>,
    read: u64,
    limits: Limits,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read += n as u64;
        let Limits { max_bytes, max_ratio } = self.limits;
        let packed = self.packed.as_ref().map(|packed| packed.get());
        if self.read.max(packed.unwrap_or_default()) > max_bytes {
            return Err(io::Error::other(format!(
                "has more than {max_bytes} bytes, and is not read further"
            )));
        }
        if packed.is_some_and(|packed| self.read > FREE && self.read > packed.saturating_mul(max_ratio)) {
            return Err(io::Error::other(format!(
                "unpacks to more than {max_ratio} times its size (`sources.decompression_max_ratio`)"
            )));
        }
        Ok(n)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    pub(in super::super) const LIMITS: Limits = Limits { max_bytes: 64 << 20, max_ratio: 100 };

    pub(in super::super) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], limits: Limits) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let unpacked = unpack(bytes, limits).and_then(|mut document| document.read_to_end(&mut text));
        unpacked.map(|_| text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_packed_document_is_known_by_its_first_bytes() {
        assert_eq!(read(b"<plain/>", LIMITS).unwrap(), b"<plain/>");
        assert_eq!(read(&gzip(b"<packed/>"), LIMITS).unwrap(), b"<packed/>");
        let twice = [gzip(b"<two"), gzip(b"/>")].concat();
        assert_eq!(read(&twice, LIMITS).unwrap(), b"<two/>");
    }

    #[test]
    fn a_document_that_swells_or_never_ends_is_given_up() {
        let bomb = gzip(&vec![b' '; 8 << 20]);
        assert!(read(&bomb, LIMITS).unwrap_err().contains("sources.decompression_max_ratio"));
        let limits = Limits { max_bytes: 1000, ..LIMITS };
        assert!(read(&[b' '; 1001], limits).unwrap_err().contains("more than 1000 bytes"));
        let endless =
            unpack(io::repeat(b'x'), limits).and_then(|mut all| io::copy(&mut all, &mut io::sink()));
        assert!(endless.is_err());
    }
}
