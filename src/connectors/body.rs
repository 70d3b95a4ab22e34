//! Reads the body of an answer: bounded in time, in size, and in what it swells to.

use super::transport::{AnswerBody, TransportError};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::BodyExt;
use std::io::{self, Write};
use std::time::Duration;

/// What a body may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// Of it is kept at most, and read at most.
    pub(super) max_bytes: usize,
    /// Between two pieces of it at most.
    pub(super) idle: Duration,
    /// Bytes that one byte may decompress to on average, at most.
    pub(super) max_ratio: usize,
}

/// Why a body could not be read.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The connection broke.
    Transport(TransportError),
    /// Nothing came for [`BodyLimits::idle`].
    Idle,
    /// It came, and is not what its headers say, or swells too much.
    Coding(String),
}

/// Reads it, decompressed, and whether it is longer than what was kept. `headers` lose what is no longer true of it.
pub(super) async fn read(
    mut body: AnswerBody,
    headers: &mut HeaderMap,
    limits: BodyLimits,
) -> Result<(Vec<u8>, bool), BodyError> {
    let coding = Coding::of(headers);
    let mut decoder = Decoder::new(coding, limits.max_bytes);
    let (mut received, mut cut) = (0, false);
    while let Some(frame) =
        tokio::time::timeout(limits.idle, body.frame()).await.map_err(|_| BodyError::Idle)?
    {
        let Ok(data) = frame.map_err(BodyError::Transport)?.into_data() else { continue };
        // Small pieces, so that the ratio is that of what was looked at.
        for piece in data.chunks(4096) {
            received += piece.len();
            cut = decoder.put(piece).map_err(|error| BodyError::Coding(coding.broken(&error)))?;
            if decoder.swells(received, limits.max_ratio) {
                return Err(BodyError::Coding(format!(
                    "it decompresses to more than {} times its size (`sources.decompression_max_ratio`)",
                    limits.max_ratio
                )));
            }
            // Compressed data can go on for ever without saying anything.
            cut |= coding != Coding::Plain && received > limits.max_bytes;
            if cut {
                break;
            }
        }
        if cut {
            break;
        }
    }
    if coding != Coding::Plain && received > 0 {
        headers.remove(CONTENT_ENCODING);
        headers.remove(CONTENT_LENGTH);
        if !cut {
            decoder.end().map_err(|error| BodyError::Coding(coding.broken(&error)))?;
            // What the decoder held back until the end may be too much as well.
            cut = decoder.sink().full;
        }
    }
    Ok((std::mem::take(&mut decoder.sink_mut().bytes), cut))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Gzip,
    Deflate,
}

impl Coding {
    /// What the client asks for is gzip and deflate; anything else is left to whoever asked for that.
    fn of(headers: &HeaderMap) -> Self {
        let name = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            _ => Self::Plain,
        }
    }

    fn broken(self, error: &io::Error) -> String {
        let name = if self == Self::Gzip { "gzip" } else { "deflate" };
        format!("its Content-Encoding is {name}, but it does not decompress ({error})")
    }
}

enum Decoder {
    Plain(Sink),
    Gzip(MultiGzDecoder<Sink>),
    Zlib(ZlibDecoder<Sink>),
    Raw(DeflateDecoder<Sink>),
    /// "deflate" means zlib, and some servers send what is inside of it. The first two bytes tell.
    Undecided(Vec<u8>, Sink),
}

impl Decoder {
    fn new(coding: Coding, max: usize) -> Self {
        let sink = Sink { bytes: Vec::new(), max, full: false };
        match coding {
            Coding::Plain => Self::Plain(sink),
            Coding::Gzip => Self::Gzip(MultiGzDecoder::new(sink)),
            Coding::Deflate => Self::Undecided(Vec::new(), sink),
        }
    }

    fn put(&mut self, piece: &[u8]) -> io::Result<bool> {
        if let Self::Undecided(seen, sink) = self {
            seen.extend_from_slice(piece);
            let [first, second, ..] = seen[..] else { return Ok(false) };
            let is_zlib = first & 0x0f == 8 && u16::from_be_bytes([first, second]).is_multiple_of(31);
            let (seen, sink) = (std::mem::take(seen), std::mem::take(sink));
            *self = if is_zlib {
                Self::Zlib(ZlibDecoder::new(sink))
            } else {
                Self::Raw(DeflateDecoder::new(sink))
            };
            return self.put(&seen);
        }
        let written = match self {
            Self::Plain(sink) => sink.write_all(piece),
            Self::Gzip(gzip) => gzip.write_all(piece),
            Self::Zlib(zlib) => zlib.write_all(piece),
            Self::Raw(raw) => raw.write_all(piece),
            Self::Undecided(..) => Ok(()),
        };
        match written {
            _ if self.sink().full => Ok(true),
            written => written.map(|()| false),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        let ended = match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(gzip) => gzip.try_finish(),
            Self::Zlib(zlib) => zlib.try_finish(),
            Self::Raw(raw) => raw.try_finish(),
            Self::Undecided(..) => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        if self.sink().full { Ok(()) } else { ended }
    }

    /// The first 64 KiB are free: little text that repeats itself compresses very well.
    fn swells(&self, received: usize, max_ratio: usize) -> bool {
        let bytes = self.sink().bytes.len();
        bytes > 65_536 && bytes > received.saturating_mul(max_ratio)
    }

    fn sink(&self) -> &Sink {
        match self {
            Self::Plain(sink) | Self::Undecided(_, sink) => sink,
            Self::Gzip(gzip) => gzip.get_ref(),
            Self::Zlib(zlib) => zlib.get_ref(),
            Self::Raw(raw) => raw.get_ref(),
        }
    }

    fn sink_mut(&mut self) -> &mut Sink {
        match self {
            Self::Plain(sink) | Self::Undecided(_, sink) => sink,
            Self::Gzip(gzip) => gzip.get_mut(),
            Self::Zlib(zlib) => zlib.get_mut(),
            Self::Raw(raw) => raw.get_mut(),
        }
    }
}

/// Takes bytes up to its bound and refuses more.
#[derive(Default)]
struct Sink {
    bytes: Vec<u8>,
    max: usize,
    full: bool,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(self.max - self.bytes.len());
        self.bytes.extend_from_slice(&data[..taken]);
        if taken == 0 && !data.is_empty() {
            self.full = true;
            return Err(io::Error::other("the bound is reached"));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http_body_util::Full;
    use proptest::prelude::*;

    const LIMITS: BodyLimits =
        BodyLimits { max_bytes: 1 << 20, idle: Duration::from_secs(1), max_ratio: 100 };

    fn packed(coding: &str, text: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        match coding {
            "gzip" => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            "deflate" => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            "raw" => {
                let mut encoder = DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            _ => text.to_vec(),
        }
    }

    fn unpack(coding: &str, packed: Vec<u8>, limits: BodyLimits) -> Result<(Vec<u8>, bool), BodyError> {
        let mut headers = HeaderMap::new();
        let name = if coding == "raw" { "deflate" } else { coding };
        headers.insert(CONTENT_ENCODING, name.parse().unwrap());
        let body = Full::new(Bytes::from(packed)).map_err(|never| match never {}).boxed_unsync();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(read(body, &mut headers, limits))
    }

    /// Text that does not compress well.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..bytes).map(|_| random.u8(..)).collect()
    }

    #[test]
    fn every_coding_gives_the_same_text_and_none_may_be_empty() {
        let text = noise(100_000);
        for coding in ["identity", "gzip", "deflate", "raw", "br"] {
            assert_eq!(
                unpack(coding, packed(coding, &text), LIMITS).unwrap(),
                (text.clone(), false),
                "{coding}"
            );
            assert_eq!(
                unpack(coding, Vec::new(), LIMITS).unwrap(),
                (Vec::new(), false),
                "{coding}: HEAD, 204"
            );
        }
    }

    #[test]
    fn a_body_is_cut_at_its_bound_however_it_is_packed() {
        let text = noise(100_000);
        for coding in ["identity", "gzip", "deflate", "raw"] {
            let exact = BodyLimits { max_bytes: text.len(), ..LIMITS };
            let packed = packed(coding, &text);
            // What does not compress is longer packed than not; that is over the bound of what may be read.
            let (body, cut) = unpack(coding, packed.clone(), exact).unwrap();
            assert!(cut == (packed.len() > text.len()) && (cut || body == text), "{coding}");
            let (body, cut) = unpack(coding, packed, BodyLimits { max_bytes: 1000, ..LIMITS }).unwrap();
            assert!(cut && body == text[..body.len()] && body.len() <= 1000, "{coding}");
        }
    }

    #[test]
    fn a_decompression_bomb_is_an_error_and_costs_no_more_than_the_bound() {
        let zeros = vec![0; 10_000_000];
        for coding in ["gzip", "deflate", "raw"] {
            let Err(BodyError::Coding(problem)) = unpack(coding, packed(coding, &zeros), LIMITS) else {
                panic!("{coding} was taken")
            };
            assert!(problem.contains("`sources.decompression_max_ratio`"), "{problem}");
            // Where the operator wants it, it is cut.
            let limits = BodyLimits { max_ratio: 10_000, ..LIMITS };
            assert_eq!(unpack(coding, packed(coding, &zeros), limits).unwrap(), (vec![0; 1 << 20], true));
        }
    }

    #[test]
    fn a_body_that_ends_early_or_is_broken_is_an_error() {
        for coding in ["gzip", "deflate", "raw"] {
            let mut packed = packed(coding, &noise(50_000));
            let half = packed[..packed.len() / 2].to_vec();
            assert!(matches!(unpack(coding, half, LIMITS), Err(BodyError::Coding(_))), "{coding}, half");
            packed[10] ^= 0x55;
            packed[20] ^= 0xff;
            let broken = unpack(coding, packed, LIMITS);
            // Raw deflate has no checksum: what is broken may look right.
            assert!(coding == "raw" || matches!(broken, Err(BodyError::Coding(_))), "{coding}, broken");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_whatever_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            for coding in ["gzip", "deflate"] {
                let _ = unpack(coding, bytes.clone(), LIMITS);
            }
        }
    }
}
