//! A gzip file of a megabyte that unpacks to a gibibyte.

use std::sync::LazyLock;

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress};

/// What one block unpacks to.
const BLOCK_BYTES: usize = 1024 * 1024;

/// How many blocks there are.
const BLOCKS: usize = 1024;

/// The file. Made when it is first asked for, which takes milliseconds, and kept.
pub(crate) fn bomb() -> Bytes {
    static BOMB: LazyLock<Bytes> = LazyLock::new(|| make(BLOCKS));
    BOMB.clone()
}

/// Packs only one block. Flushed in full, it ends at a byte and looks back at nothing before it,
/// so it can be repeated.
fn make(blocks: usize) -> Bytes {
    /// RFC 1952: magic, deflate, no flags, no time, best compression, unknown system.
    const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    /// RFC 1951: the last block, with fixed codes and nothing in it.
    const LAST_BLOCK: [u8; 2] = [3, 0];

    let zeros = vec![0; BLOCK_BYTES];
    let mut block = Vec::with_capacity(BLOCK_BYTES / 100);
    Compress::new(Compression::best(), false)
        .compress_vec(&zeros, &mut block, FlushCompress::Full)
        .expect("nothing but a missing dictionary fails");
    let mut crc_of_block = Crc::new();
    crc_of_block.update(&zeros);

    let mut crc = Crc::new();
    let mut file = HEAD.to_vec();
    for _ in 0..blocks {
        file.extend_from_slice(&block);
        crc.combine(&crc_of_block);
    }
    file.extend_from_slice(&LAST_BLOCK);
    file.extend_from_slice(&crc.sum().to_le_bytes());
    file.extend_from_slice(&crc.amount().to_le_bytes());
    file.into()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn it_unpacks_to_zeros_of_the_length_that_it_tells() {
        let mut unpacked = Vec::new();
        // Checks the sum and the length at the end of the file.
        GzDecoder::new(&*make(3)).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked.len(), 3 * BLOCK_BYTES);
        assert!(unpacked.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_small_file_unpacks_to_a_gibibyte() {
        let file = bomb();
        assert!(file.len() < 2 * 1024 * 1024, "{}", file.len());
        assert_eq!(file[file.len() - 4..], (1_u32 << 30).to_le_bytes());
    }
}
