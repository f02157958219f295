use super::*;
use proptest::prelude::*;

/// A plausible file of layout `version`, with a right CRC.
fn sample(version: u32) -> Vec<u8> {
    let mut bytes = vec![0; CONTROL_FILE_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &7_300_000_000_000_000_001u64.to_le_bytes());
    put(8, &version.to_le_bytes());
    put(12, &202_209_061u32.to_le_bytes());
    put(16, &6u32.to_le_bytes());
    put(32, &0x0123_4567_89AB_CDEFu64.to_le_bytes());
    put(40, &0x0123_4567_0000_0028u64.to_le_bytes());
    put(48, &3u32.to_le_bytes());
    put(52, &2u32.to_le_bytes());
    put(56, &[1]);
    if version >= 1700 {
        put(60, &2u32.to_le_bytes());
    }
    if version == 1800 {
        put(256, &[1]);
    }
    put(172, &1u32.to_le_bytes());
    put(208, &1_234_567f64.to_le_bytes());
    put(216, &8192u32.to_le_bytes());
    put(220, &131_072u32.to_le_bytes());
    put(224, &8192u32.to_le_bytes());
    put(228, &(16u32 << 20).to_le_bytes());
    put(252, &1u32.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// Puts the CRC right after a change.
fn seal(bytes: &mut [u8]) {
    let at = if le_u32(bytes, 8) == Some(1800) { 292 } else { 288 };
    let crc = crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn fields() {
    for version in [1300, 1700, 1800] {
        let control = ControlFile::parse(&sample(version)).unwrap();
        assert_eq!(control.system_id.to_string(), "7300000000000000001");
        assert_eq!(control.state, DbState::InProduction);
        assert_eq!(control.checkpoint_lsn.to_string(), "1234567/89ABCDEF");
        assert_eq!(control.checkpoint.timeline, Timeline(3));
        assert_eq!(control.checkpoint.previous_timeline, Timeline(2));
        assert!(control.checkpoint.full_page_writes);
        assert_eq!(control.checkpoint.wal_level, (version >= 1700).then_some(WalLevel::Logical));
        assert_eq!(control.default_char_signed, (version == 1800).then_some(true));
        assert_eq!(control.wal_level, WalLevel::Replica);
        assert_eq!(control.wal_segment_size, WalSegmentSize::DEFAULT);
        assert!(control.has_data_checksums());
        assert_eq!(control.major(), Ok(PgMajor::V15));
    }
}

#[test]
fn each_flipped_bit_is_found() {
    let good = sample(1300);
    for at in 0..292 {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(ControlFile::parse(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn impossible_values_are_refused() {
    let check = |at: usize, value: u32, field: &str| {
        let mut bad = sample(1300);
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(&mut bad);
        let error = ControlFile::parse(&bad).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    };
    check(16, 7, "state");
    check(172, 9, "wal_level");
    check(208, 1, "floatFormat");
    check(216, 8000, "blcksz");
    check(220, 0, "relseg_size");
    check(224, 0, "xlog_blcksz");
    check(228, 5, "wal_segment_size");
    let mut swapped = sample(1300);
    swapped[8..12].reverse();
    assert!(ControlFile::parse(&swapped).unwrap_err().to_string().contains("big-endian"));
    let mut newer = sample(1300);
    newer[8..12].copy_from_slice(&1900u32.to_le_bytes());
    assert!(matches!(ControlFile::parse(&newer), Err(FormatError::UnsupportedVersion { found: 1900, .. })));
}

proptest! {
    #[test]
    fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), version in prop_oneof![Just(1300u32), Just(1700), Just(1800)]) {
        let _ = ControlFile::parse(&bytes);
        if bytes.len() >= 300 {
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            seal(&mut bytes);
            let _ = ControlFile::parse(&bytes);
            bytes[208..216].copy_from_slice(&1_234_567f64.to_le_bytes());
            seal(&mut bytes);
            let _ = ControlFile::parse(&bytes);
        }
    }

    #[test]
    fn short_files(cut in 0usize..292) {
        let short = matches!(ControlFile::parse(&sample(1300)[..cut]), Err(FormatError::Truncated { .. }));
        prop_assert!(short);
    }
}
