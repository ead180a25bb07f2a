// SPDX-License-Identifier: Apache-2.0
//! The works, done with the crate: the verbs that its documentation names for them, on a map that is at hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::mmap::NewBitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion, VolatileMemory,
};

use crate::measure::{best, best_single, keep, median, print_plain, Row};
use crate::raw;
use crate::workload::{
    digest, lower_halves, places, straddling_places, upper_halves, Arena, Layout, Pattern, Place, Region,
    COUNT, PAGE,
};

const GIB: usize = 1 << 30;

/// A map over the arena: no mapping is made.
fn map<B: NewBitmap>(regions: &[Region], arena: &Arena) -> GuestMemoryMmap<B> {
    let regions = regions
        .iter()
        .map(|region| {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the arena has the bytes of all regions and lives longer than the map.
            let mapping = unsafe {
                MmapRegion::<B>::build_raw(
                    arena.at(region.offset),
                    region.size as usize,
                    prot,
                    libc::MAP_SHARED,
                )
            };
            GuestRegionMmap::new(mapping.expect("mapping"), GuestAddress(region.base)).expect("region")
        })
        .collect();
    GuestMemoryMmap::from_regions(regions).expect("map")
}

fn addresses(places: &[Place]) -> Vec<GuestAddress> {
    places.iter().map(|place| GuestAddress(place.guest)).collect()
}

/// That the map leads each address to the byte that the raw pointer leads to; leaves the memory zeroed.
fn check(memory: &GuestMemoryMmap<()>, addresses: &[GuestAddress], hosts: &[*mut u64]) {
    for (number, (&host, &address)) in hosts.iter().zip(addresses).enumerate() {
        // SAFETY: a place in the arena.
        unsafe { host.write_unaligned(number as u64) };
        let value: u64 = memory.read_obj(address).expect("read");
        assert_eq!(value, number as u64);
        memory.write_obj(0u64, address).expect("write");
        // SAFETY: as above.
        assert_eq!(unsafe { host.read_unaligned() }, 0);
    }
}

#[inline(never)]
fn read(memory: &GuestMemoryMmap<()>, addresses: &[GuestAddress]) {
    let mut sum = 0u64;
    let mut failures = 0u64;
    for &address in addresses {
        match memory.read_obj::<u64>(address) {
            Ok(value) => sum = sum.wrapping_add(value),
            Err(_) => failures += 1,
        }
    }
    keep(sum);
    assert_eq!(failures, 0);
}

#[inline(never)]
fn read_dependent(memory: &GuestMemoryMmap<()>, addresses: &[GuestAddress]) {
    let mut last = 0u64;
    let mut failures = 0u64;
    for &address in addresses {
        match memory.read_obj::<u64>(GuestAddress(address.0.wrapping_add(last))) {
            Ok(value) => last = value,
            Err(_) => failures += 1,
        }
    }
    keep(last);
    assert_eq!(failures, 0);
}

/// The quickest way of the crate to read a u64: no promise about tearing, and one region only.
#[inline(never)]
fn read_by_slice(memory: &GuestMemoryMmap<()>, addresses: &[GuestAddress]) {
    let mut sum = 0u64;
    let mut failures = 0u64;
    for &address in addresses {
        match memory.get_slice(address, 8) {
            Ok(slice) => match slice.get_ref::<u64>(0) {
                Ok(value) => sum = sum.wrapping_add(value.load()),
                Err(_) => failures += 1,
            },
            Err(_) => failures += 1,
        }
    }
    keep(sum);
    assert_eq!(failures, 0);
}

#[inline(never)]
fn write<B: Bitmap + 'static>(memory: &GuestMemoryMmap<B>, addresses: &[GuestAddress]) {
    let mut failures = 0u64;
    for &address in addresses {
        failures += u64::from(memory.write_obj(0u64, address).is_err());
    }
    keep(failures);
    assert_eq!(failures, 0);
}

#[inline(never)]
fn load_acquire(memory: &GuestMemoryMmap<()>, addresses: &[GuestAddress]) {
    let mut sum = 0u64;
    let mut failures = 0u64;
    for &address in addresses {
        match memory.load::<u64>(address, Ordering::Acquire) {
            Ok(value) => sum = sum.wrapping_add(value),
            Err(_) => failures += 1,
        }
    }
    keep(sum);
    assert_eq!(failures, 0);
}

#[inline(never)]
fn store_release(memory: &GuestMemoryMmap<()>, addresses: &[GuestAddress]) {
    let mut failures = 0u64;
    for &address in addresses {
        failures += u64::from(memory.store(0u64, address, Ordering::Release).is_err());
    }
    keep(failures);
    assert_eq!(failures, 0);
}

/// Reads and writes of a u64.
pub fn objects(layout: Layout, regions: u64, budget: Duration) {
    let list = layout.regions(regions);
    let arena = Arena::new(&list).expect("arena");
    let memory = map::<()>(&list, &arena);
    let tracked = map::<AtomicBitmap>(&list, &arena);
    for pattern in [Pattern::Runs, Pattern::Jumps] {
        if pattern == Pattern::Jumps && regions == 1 {
            continue;
        }
        let row = Row::new(layout, pattern, regions);
        let places = places(&list, COUNT, pattern, 8, 8);
        let (at, hosts) = (addresses(&places), arena.hosts(&places));
        row.print_digest("u64", digest(&places));
        check(&memory, &at, &hosts);
        raw::measure(row, &hosts, budget);
        row.measure("read_u64", budget, COUNT, || read(&memory, &at));
        let dependent = best(budget, COUNT, || read_dependent(&memory, &at));
        row.print("read_u64", "dependent", dependent);
        row.measure("write_u64", budget, COUNT, || write(&memory, &at));
        row.measure("read_u64_by_slice", budget, COUNT, || read_by_slice(&memory, &at));
        if pattern == Pattern::Runs {
            row.measure("write_tracked", budget, COUNT, || write(&tracked, &at));
            row.measure("load_acquire", budget, COUNT, || load_acquire(&memory, &at));
            row.measure("store_release", budget, COUNT, || store_release(&memory, &at));
        }
    }
}

/// Two threads that write to the same pages, one to the lower halves, the other to the upper halves.
pub fn two_threads(regions: u64, budget: Duration) {
    let row = Row::new(Layout::Adjacent, Pattern::Runs, regions);
    let list = row.layout.regions(regions);
    let arena = Arena::new(&list).expect("arena");
    let places = places(&list, COUNT, row.pattern, 8, 8);
    row.print_digest("two_threads", digest(&lower_halves(&places)));
    let time = write_beside_another(&map::<()>(&list, &arena), &places, budget);
    row.print("write_u64_two_threads", "independent", time);
    let time = write_beside_another(&map::<AtomicBitmap>(&list, &arena), &places, budget);
    row.print("write_tracked_two_threads", "independent", time);
}

/// The time of a write while another thread writes to the upper halves of the same pages.
fn write_beside_another<B: Bitmap + Send + Sync + 'static>(
    memory: &GuestMemoryMmap<B>,
    places: &[Place],
    budget: Duration,
) -> f64 {
    let own = addresses(&lower_halves(places));
    let others = addresses(&upper_halves(places));
    let is_running = AtomicBool::new(false);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                write(memory, &others);
                is_running.store(true, Ordering::Release);
            }
        });
        while !is_running.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let time = median(budget, own.len(), || write(memory, &own));
        is_over.store(true, Ordering::Relaxed);
        time
    })
}

/// Copies between guest memory and a buffer of 4 KiB or 1 MiB, which begins so many bytes behind a page border.
pub fn copies(budget: Duration) {
    const MIB: u64 = 1 << 20;
    for (name, regions, size, count, skip) in [
        ("4k", 1, PAGE, 4096, 0),
        ("4k", 64, PAGE, 4096, 0),
        ("4k_at_16", 1, PAGE, 4096, 16),
        ("1m", 1, MIB, 16, 0),
    ] {
        let row = Row::new(Layout::Adjacent, Pattern::Jumps, regions);
        let list = row.layout.regions(regions);
        let arena = Arena::new(&list).expect("arena");
        let memory = map::<()>(&list, &arena);
        let places = places(&list, count, row.pattern, size, size);
        let at = addresses(&places);
        row.print_digest(&format!("copy_{}", name), digest(&places));
        let mut room = vec![0u8; (size + 2 * PAGE) as usize];
        let begin = room.as_ptr().align_offset(PAGE as usize) + skip;
        let buffer = &mut room[begin..begin + size as usize];
        raw::measure_copies(row, name, &arena.hosts(&places), buffer, budget);
        row.measure(&format!("read_{}", name), budget, count, || {
            for &address in &at {
                memory.read_slice(buffer, address).expect("read");
            }
        });
        row.measure(&format!("write_{}", name), budget, count, || {
            for &address in &at {
                memory.write_slice(buffer, address).expect("write");
            }
        });
    }
}

/// A u64 that lies in two neighboring regions.
pub fn straddling(regions: u64, budget: Duration) {
    let row = Row::new(Layout::Adjacent, Pattern::Jumps, regions);
    let list = row.layout.regions(regions);
    let arena = Arena::new(&list).expect("arena");
    let memory = map::<()>(&list, &arena);
    let places = straddling_places(&list, COUNT);
    let at = addresses(&places);
    row.print_digest("straddling", digest(&places));
    check(&memory, &at, &arena.hosts(&places));
    row.measure("read_straddling", budget, COUNT, || read(&memory, &at));
    row.measure("write_straddling", budget, COUNT, || write(&memory, &at));
}

/// The log of 1 GiB with pages of 4 KiB.
pub fn dirty_log(budget: Duration) {
    let log = AtomicBitmap::new(GIB, PAGE as usize);
    let mark = best_single(budget, || log.reset(), || log.mark_dirty(0, GIB));
    assert!(log.dirty_at(0) && log.dirty_at(GIB - 1));
    print_plain("mark_1g", 0, mark);
    log.reset();
    print_plain("harvest_clean_1g", 0, best_single(budget, || (), || log.get_and_reset()));
}

/// The current map, asked for on a hot path and used at once.
pub fn snapshot(budget: Duration) {
    let list = Layout::Adjacent.regions(4);
    let arena = Arena::new(&list).expect("arena");
    let live = GuestMemoryAtomic::new(map::<()>(&list, &arena));
    let time = best(budget, COUNT, || {
        for _ in 0..COUNT {
            let memory = live.memory();
            keep(memory.num_regions() as u64);
        }
    });
    print_plain("snapshot", 4, time);
}

/// A map of 1024 regions over memory that is there; the regions come in the order of their addresses.
pub fn build_map(layout: Layout, budget: Duration) {
    let row = Row::new(layout, Pattern::Runs, 1024);
    let list = layout.regions(row.regions);
    let arena = Arena::new(&list).expect("arena");
    let time = best_single(budget, || (), || map::<()>(&list, &arena));
    row.print("build_map", "independent", time);
}
