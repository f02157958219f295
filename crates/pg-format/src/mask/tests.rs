use super::*;
use proptest::prelude::*;

/// A page with a special area, and one line pointer to `tuple` just before it.
fn page_with(special: &[u8], tuple: &[u8], flags: u32) -> Vec<u8> {
    let mut page = vec![0u8; 8192];
    let special_at = 8192 - special.len();
    let at = (special_at - tuple.len()) / 8 * 8;
    page[special_at..].copy_from_slice(special);
    page[at..at + tuple.len()].copy_from_slice(tuple);
    let lower = if tuple.is_empty() { 24u16 } else { 28 };
    page[12..14].copy_from_slice(&lower.to_le_bytes());
    page[14..16].copy_from_slice(&(at as u16).to_le_bytes());
    page[16..18].copy_from_slice(&(special_at as u16).to_le_bytes());
    page[18..20].copy_from_slice(&(8192u16 | 4).to_le_bytes());
    if !tuple.is_empty() {
        let pointer = at as u32 | flags << 15 | (tuple.len() as u32) << 17;
        page[24..28].copy_from_slice(&pointer.to_le_bytes());
    }
    page
}

/// A heap tuple of two columns, 29 bytes long.
fn heap_tuple(infomask: u16) -> Vec<u8> {
    let mut tuple = vec![7u8; 29];
    tuple[18..20].copy_from_slice(&2u16.to_le_bytes());
    tuple[20..22].copy_from_slice(&infomask.to_le_bytes());
    tuple[22] = 24;
    tuple
}

fn special16(flags: u16, id: u16) -> Vec<u8> {
    let mut special = vec![1u8; 16];
    special[12..14].copy_from_slice(&flags.to_le_bytes());
    special[14..16].copy_from_slice(&id.to_le_bytes());
    special
}

fn masked(page: &[u8]) -> Vec<u8> {
    let mut page = page.to_vec();
    mask_page(&mut page);
    page
}

/// Asserts that a change of `bytes` at `at` is masked, or is not.
fn check(page: &[u8], at: usize, bytes: &[u8], expect_masked: bool) {
    let mut other = page.to_vec();
    other[at..at + bytes.len()].copy_from_slice(bytes);
    assert_ne!(other, page, "the change at {at} changes nothing");
    assert_eq!(masked(&other) == masked(page), expect_masked, "at {at}, {:?}", page_kind(page));
}

#[test]
fn heap() {
    let page = page_with(&[], &heap_tuple(0x0100), 1);
    let tuple = 8160;
    assert_eq!(page_kind(&page), PageKind::Heap);
    check(&page, 8, &[9, 9], true); // checksum
    check(&page, 10, &[3], true); // hints of the header
    check(&page, 10, &[4], false); // PD_ALL_VISIBLE goes together with a bit of the visibility map
    check(&page, 20, &[1, 2, 3, 4], true); // prune_xid
    check(&page, 4000, &[1], true); // hole
    check(&page, tuple + 8, &[1, 2, 3, 4], true); // cmin
    check(&page, tuple + 20, &0x0900u16.to_le_bytes(), true); // hint bits
    check(&page, tuple + 29, &[1, 2, 3], true); // padding
    check(&page, 0, &[1], false); // LSN
    check(&page, tuple, &[1], false); // xmin
    check(&page, tuple + 4, &[1], false); // xmax
    check(&page, tuple + 12, &[1], false); // ctid
    check(&page, tuple + 20, &0x0102u16.to_le_bytes(), false); // has varwidth
    check(&page, tuple + 24, &[1], false); // data
    check(&page, tuple + 28, &[1], false); // data, last byte

    let frozen = page_with(&[], &heap_tuple(0x0300), 1);
    check(&frozen, tuple + 20, &0x0B00u16.to_le_bytes(), true);
    check(&frozen, tuple + 20, &0x2300u16.to_le_bytes(), false);
}

#[test]
fn what_is_no_heap_tuple_keeps_its_bytes() {
    let mut tuple = heap_tuple(0x0100);
    tuple[22] = 32;
    let page = page_with(&[], &tuple, 1);
    for at in [8160 + 8, 8160 + 21, 8160 + 30] {
        check(&page, at, &[0xAA], false);
    }
}

#[test]
fn maps_keep_all_but_the_checksum() {
    let page = page_with(&[], &[], 0);
    assert_eq!(page_kind(&page), PageKind::Bare);
    check(&page, 8, &[9, 9], true);
    check(&page, 24, &[1], false);
    check(&page, 4000, &[1], false);
}

#[test]
fn indexes() {
    let dead = |page: &[u8]| {
        let raw = le_u32(page, 24).unwrap();
        (raw | 3 << 15).to_le_bytes()
    };
    let leaf = page_with(&special16(1, 5), &[7; 16], 1);
    assert_eq!(page_kind(&leaf), PageKind::Btree);
    check(&leaf, 24, &dead(&leaf), true);
    check(&leaf, 8190, &[0, 0], true); // cycle id
    check(&leaf, 8188, &[0x61], true); // BTP_SPLIT_END, BTP_HAS_GARBAGE
    check(&leaf, 8188, &[0x03], false); // BTP_ROOT
    check(&leaf, 8184, &[3], false); // level
    check(&leaf, 8161, &[3], false); // tuple
    let inner = page_with(&special16(0, 5), &[7; 16], 1);
    check(&inner, 24, &dead(&inner), false);

    let hash = page_with(&special16(2, 0xFF80), &[7; 16], 1);
    assert_eq!(page_kind(&hash), PageKind::Hash);
    check(&hash, 24, &dead(&hash), true);
    check(&hash, 8188, &[0x82], true);
    check(&hash, 8188, &[0x12], false);

    let gist = page_with(&special16(1, 0xFF81), &[7; 16], 1);
    assert_eq!(page_kind(&gist), PageKind::Gist);
    check(&gist, 24, &dead(&gist), true);
    check(&gist, 8188, &[0x19], true);
    check(&gist, 8176, &[9; 8], false); // NSN counts within one cluster

    let gin = page_with(&[1, 0, 0, 0, 0, 0, 2, 0], &[7; 16], 1);
    assert_eq!(page_kind(&gin), PageKind::Gin);
    check(&gin, 5000, &[1], true);
    check(&gin, 8170, &[1], false);
    let deleted = page_with(&[1, 0, 0, 0, 0, 0, 4, 0], &[7; 16], 1);
    check(&deleted, 8170, &[1], true);

    let spgist = page_with(&[0, 0, 0, 0, 0, 0, 0x82, 0xFF], &[7; 16], 1);
    assert_eq!(page_kind(&spgist), PageKind::Spgist);
    let brin = page_with(&[0, 0, 0, 0, 0, 0, 0x93, 0xF0], &[7; 16], 1);
    assert_eq!(page_kind(&brin), PageKind::Brin);
    check(&brin, 8188, &[1], true);
    let unknown = page_with(&[0, 0, 0, 0, 0, 0, 0x90, 0xFF], &[7; 16], 1);
    assert_eq!(page_kind(&unknown), PageKind::Unknown);
    check(&unknown, 5000, &[1], false);
}

#[test]
fn options() {
    let page = page_with(&[], &heap_tuple(0x0100), 1);
    let with = |page: &[u8], options: &MaskOptions| {
        let mut page = page.to_vec();
        mask_page_with(&mut page, options);
        page
    };
    let replayed = MaskOptions::origin_and_replayed(BlockNumber(0x1_0002));
    let mut other = page.clone();
    other[0..8].fill(5);
    assert_eq!(with(&page, &replayed), with(&other, &replayed));

    // A speculative token, and the place that replay writes instead.
    let (mut origin, mut copy) = (page.clone(), page.clone());
    origin[8160 + 12..8160 + 18].copy_from_slice(&[9, 9, 9, 9, 0xFE, 0xFF]);
    copy[8160 + 12..8160 + 18].copy_from_slice(&[1, 0, 2, 0, 1, 0]);
    assert_eq!(with(&origin, &replayed), with(&copy, &replayed));

    let mut tuple = heap_tuple(0x0B00);
    tuple.resize(41, 1);
    let sequence = page_with(&[0x17, 0x17, 0, 0, 0, 0, 0, 0], &tuple, 1);
    assert_eq!(page_kind(&sequence), PageKind::Sequence);
    let mut ahead = sequence.clone();
    ahead[8136 + 24] = 33;
    assert_ne!(masked(&sequence), masked(&ahead));
    assert_eq!(with(&sequence, &replayed), with(&ahead, &replayed));
}

proptest! {
    #[test]
    fn never_panics_and_is_idempotent(
        mut page in proptest::collection::vec(any::<u8>(), 8192),
        cut in 0usize..8192,
        pointers in 0usize..300,
        special in prop_oneof![Just(0usize), Just(8), Just(16), Just(24)],
        id in prop_oneof![Just(0u16), Just(5), 0xFF80u16..=0xFF83, 0xF091u16..=0xF093],
    ) {
        let mut short = page[..cut].to_vec();
        mask_page(&mut short);
        let lower = 24 + 4 * pointers;
        page[10..12].fill(0);
        page[12..14].copy_from_slice(&(lower as u16).to_le_bytes());
        page[14..16].copy_from_slice(&((lower + cut % (8192 - special - lower + 1)) as u16).to_le_bytes());
        page[16..18].copy_from_slice(&((8192 - special) as u16).to_le_bytes());
        page[18..20].copy_from_slice(&(8192u16 | 4).to_le_bytes());
        page[8190..].copy_from_slice(&id.to_le_bytes());
        for options in [MaskOptions::SAME_CLUSTER, MaskOptions::origin_and_replayed(BlockNumber(3))] {
            let mut once = page.clone();
            mask_page_with(&mut once, &options);
            let mut twice = once.clone();
            mask_page_with(&mut twice, &options);
            prop_assert_eq!(once, twice);
        }
    }
}

#[test]
fn what_the_meta_page_of_spgist_remembers_is_a_hint() {
    let special = |flags: u16| [&flags.to_le_bytes()[..], &[0, 0, 0, 0], &0xFF82u16.to_le_bytes()].concat();
    let mut page = page_with(&special(1), &[], 1);
    page[12..14].copy_from_slice(&(24u16 + 68).to_le_bytes());
    page[24..28].copy_from_slice(&0xBA0B_ABEEu32.to_le_bytes());
    assert_eq!(page_kind(&page), PageKind::Spgist);
    check(&page, 24, &[1], false); // the magic number
    check(&page, 28, &[1, 2, 3, 4], true); // the first page
    check(&page, 91, &[9], true); // the room in the last one
    let mut other = page.clone();
    other[8184] = 4;
    check(&other, 28, &[1, 2, 3, 4], false); // a page that is no meta page
}
