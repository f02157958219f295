use super::*;
use proptest::prelude::*;

/// The algorithm written plainly, one sum after the other.
fn plain_checksum(page: &[u8], block: u32) -> u16 {
    let mut page = page.to_vec();
    page[8..10].fill(0);
    let mut result = 0;
    for (column, base) in BASE_OFFSETS.iter().enumerate() {
        let mut sum = *base;
        let words = (0..page.len() / 128).map(|row| le_u32(&page, row * 128 + column * 4).unwrap());
        for word in words.chain([0, 0]) {
            let mixed = sum ^ word;
            sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
        result ^= sum;
    }
    ((result ^ block) % 65_535 + 1) as u16
}

fn sane_page(bytes: usize) -> Vec<u8> {
    let mut page = vec![0; bytes];
    page[0..4].copy_from_slice(&1u32.to_le_bytes());
    page[4..8].copy_from_slice(&0xABu32.to_le_bytes());
    page[12..14].copy_from_slice(&28u16.to_le_bytes());
    page[14..16].copy_from_slice(&(bytes as u16 - 16).to_le_bytes());
    page[16..18].copy_from_slice(&(bytes as u16).to_le_bytes());
    page[18..20].copy_from_slice(&(bytes as u16 | 4).to_le_bytes());
    page
}

#[test]
fn verdicts() {
    for bytes in [4096, 8192, 16384, 32768] {
        let mut page = vec![0; bytes];
        assert_eq!(check_page(&page, 5, Checksums::On), PageCheck::AllZero);
        page[bytes - 1] = 1;
        assert_eq!(check_page(&page, 5, Checksums::On), PageCheck::NewWithContent);

        let mut page = sane_page(bytes);
        assert_eq!(check_page(&page, 5, Checksums::Off), PageCheck::Ok);
        let sum = page_checksum(&page, 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(check_page(&page, 5, Checksums::On), PageCheck::Ok);
        assert!(
            matches!(check_page(&page, 6, Checksums::On), PageCheck::ChecksumMismatch { expected, .. } if expected == sum)
        );
        page[bytes / 2] ^= 1;
        assert!(matches!(check_page(&page, 5, Checksums::On), PageCheck::ChecksumMismatch { .. }));
        page[10] = 0x08;
        assert_eq!(check_page(&page, 5, Checksums::Off), PageCheck::BadHeader);
    }
    for bytes in [0, 1, 23, 128, 8191, 65536] {
        assert_eq!(check_page(&vec![1; bytes], 0, Checksums::On), PageCheck::BadLength);
    }
}

#[test]
fn header() {
    let header = PageHeader::parse(&sane_page(8192)).unwrap();
    assert_eq!(header.lsn, Lsn(0x1_0000_00AB));
    assert_eq!((header.lower, header.upper, header.special), (28, 8176, 8192));
    assert_eq!((header.size_bytes, header.layout_version), (8192, 4));
    assert!(PageHeader::parse(&[0; 23]).is_err());
}

proptest! {
    #[test]
    fn checksum_is_the_plain_one(seed in proptest::collection::vec(any::<u8>(), 64), shift in 10u32..=15, block: u32) {
        let page: Vec<u8> = (0..1usize << shift)
            .map(|at| seed[at % 64].wrapping_mul((at / 64) as u8 | 1).wrapping_add((at >> 7) as u8))
            .collect();
        prop_assert_eq!(page_checksum(&page, block), plain_checksum(&page, block));
    }

    #[test]
    fn never_panics(page in proptest::collection::vec(any::<u8>(), 0..1100), block: u32) {
        let _ = check_page(&page, block, Checksums::On);
        let _ = page_checksum(&page, block);
        let _ = PageHeader::parse(&page);
    }
}
