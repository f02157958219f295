//! Prints how fast pages are checked and masked.
#![allow(clippy::print_stdout)]
use std::hint::black_box;
use std::time::Instant;

fn main() {
    let mut pages: Vec<Vec<u8>> = (0..512u32)
        .map(|n| (0..8192u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(n) >> 13) as u8).collect())
        .collect();
    for _ in 0..3 {
        let rounds = 400;
        let start = Instant::now();
        let mut sum = 0u32;
        for _ in 0..rounds {
            for (block, page) in pages.iter().enumerate() {
                sum = sum.wrapping_add(u32::from(pg_format::page_checksum(black_box(page), block as u32)));
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("checksum {:.1} GB/s ({sum})", (rounds * 512 * 8192) as f64 / seconds / 1e9);
    }
    // Heap pages of 60 tuples.
    for page in &mut pages {
        page[10..12].fill(0);
        page[12..14].copy_from_slice(&(24u16 + 240).to_le_bytes());
        page[14..16].copy_from_slice(&512u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&8196u16.to_le_bytes());
        for t in 0..60usize {
            let at = 512 + t * 128;
            page[24 + t * 4..28 + t * 4].copy_from_slice(&(at as u32 | 1 << 15 | 120 << 17).to_le_bytes());
            page[at + 20..at + 22].fill(0);
            page[at + 22] = 24;
        }
    }
    let start = Instant::now();
    let rounds = 400;
    for _ in 0..rounds {
        for page in &mut pages {
            pg_format::mask_page(black_box(page));
        }
    }
    println!("mask {:.1} GB/s", (rounds * 512 * 8192) as f64 / start.elapsed().as_secs_f64() / 1e9);
}
