// SPDX-License-Identifier: Apache-2.0
//! What both sides do: the same layouts, addresses and memory as bench/mem/workload.hpp, from the same seeds.
//! bench/mem/README.md defines them; compare.py checks by a digest that they agree.

use std::io;

pub const PAGE: u64 = 4096;
pub const WORKING_SET: u64 = 4 << 20;
/// Accesses of one pass.
pub const COUNT: usize = 65536;
/// Accesses in a row that stay in one region, in the pattern "runs".
pub const RUN: usize = 64;

const LAYOUT_SEED: u64 = 7;
const ADDRESS_SEED: u64 = 11;

/// splitmix64
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Adjacent,
    Sparse48,
    Clusters,
}

impl Layout {
    pub const ALL: [Layout; 3] = [Layout::Adjacent, Layout::Sparse48, Layout::Clusters];

    pub fn name(self) -> &'static str {
        match self {
            Layout::Adjacent => "adjacent",
            Layout::Sparse48 => "sparse48",
            Layout::Clusters => "clusters",
        }
    }

    /// The regions in the order of their addresses.
    pub fn regions(self, count: u64) -> Vec<Region> {
        let share = std::cmp::max(PAGE, WORKING_SET / count / PAGE * PAGE);
        let mut regions = match self {
            Layout::Adjacent => adjacent(count, share),
            Layout::Sparse48 if count <= 4 => few(count, share),
            Layout::Sparse48 => sparse(count, share),
            Layout::Clusters => clusters(count),
        };
        regions.sort_by_key(|region| region.base);
        let mut offset = 0;
        for region in &mut regions {
            region.offset = offset;
            offset += region.size;
        }
        regions
    }
}

/// A range of guest addresses, and where its bytes begin in the host memory of the layout.
#[derive(Clone, Copy)]
pub struct Region {
    pub base: u64,
    pub size: u64,
    pub offset: u64,
}

fn region(base: u64, size: u64) -> Region {
    Region { base, size, offset: 0 }
}

fn adjacent(count: u64, share: u64) -> Vec<Region> {
    (0..count).map(|i| region(i * share, share)).collect()
}

fn few(count: u64, share: u64) -> Vec<Region> {
    if count == 1 {
        return vec![region(0, share)];
    }
    let bases = [0, 3 << 30, 4 << 30, 64 << 30];
    let sizes = [share + PAGE, PAGE, share + 4 * PAGE, PAGE];
    (0..count as usize).map(|i| region(bases[i], sizes[i])).collect()
}

fn sparse(count: u64, share: u64) -> Vec<Region> {
    let mut random = Random::new(LAYOUT_SEED);
    let mut regions: Vec<Region> = Vec::new();
    while (regions.len() as u64) < count {
        let top = 1u64 << (16 + random.below(32));
        let base = (top | (random.next() & (top - 1))) & !(PAGE - 1);
        let size = PAGE * (1 + 2 * random.below(share / PAGE));
        if regions.iter().all(|other| base >= other.base + other.size || other.base >= base + size) {
            regions.push(region(base, size));
        }
    }
    regions
}

fn clusters(count: u64) -> Vec<Region> {
    let groups = [0, 4 << 30, 1 << 40, 255 << 40];
    let each = std::cmp::max(1, count / 4);
    (0..count)
        .map(|i| region(groups[(i / each) as usize] + i % each * 3 * PAGE, PAGE * (1 + i % 3)))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// RUN accesses in one region, then as many in another one.
    Runs,
    /// Every access in another region than the one before it.
    Jumps,
}

impl Pattern {
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Runs => "runs",
            Pattern::Jumps => "jumps",
        }
    }

    fn length(self) -> usize {
        match self {
            Pattern::Runs => RUN,
            Pattern::Jumps => 1,
        }
    }
}

/// A guest address, and the place in the host memory where its byte is.
#[derive(Clone, Copy)]
pub struct Place {
    pub guest: u64,
    pub offset: u64,
}

/// Where accesses of `size` bytes go; each lies in one region, its place in there a multiple of `alignment`.
pub fn places(regions: &[Region], count: usize, pattern: Pattern, size: u64, alignment: u64) -> Vec<Place> {
    let mut random = Random::new(ADDRESS_SEED);
    let mut at = 0;
    (0..count)
        .map(|i| {
            if i % pattern.length() == 0 && regions.len() > 1 {
                at = (at + 1 + random.below(regions.len() as u64 - 1) as usize) % regions.len();
            }
            let region = regions[at];
            let inside = random.below((region.size - size) / alignment + 1) * alignment;
            Place { guest: region.base + inside, offset: region.offset + inside }
        })
        .collect()
}

/// Where u64 begin that lie in two neighboring regions; `regions` is of the adjacent layout.
pub fn straddling_places(regions: &[Region], count: usize) -> Vec<Place> {
    let mut random = Random::new(ADDRESS_SEED);
    (0..count)
        .map(|_| {
            let upper = regions[1 + random.below(regions.len() as u64 - 1) as usize];
            let before = 1 + random.below(7);
            Place { guest: upper.base - before, offset: upper.offset - before }
        })
        .collect()
}

const HALF_PAGE: u64 = PAGE / 2;

/// The same pages, in the lower half of each.
pub fn lower_halves(places: &[Place]) -> Vec<Place> {
    let lower = |value| value & !HALF_PAGE;
    let half = |place: &Place| Place { guest: lower(place.guest), offset: lower(place.offset) };
    places.iter().map(half).collect()
}

/// The same pages, in the upper half of each.
pub fn upper_halves(places: &[Place]) -> Vec<Place> {
    let upper = |value| value | HALF_PAGE;
    let half = |place: &Place| Place { guest: upper(place.guest), offset: upper(place.offset) };
    places.iter().map(half).collect()
}

/// Tells two lists of places apart.
pub fn digest(places: &[Place]) -> u64 {
    places.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, place| {
        let hash = (hash ^ place.guest).wrapping_mul(0x100_0000_01b3);
        (hash ^ place.offset).wrapping_mul(0x100_0000_01b3)
    })
}

/// The bytes of all regions of a layout, one after the other: one shared, populated mapping of a memfd, zeroed.
pub struct Arena {
    base: *mut u8,
    size: usize,
}

impl Arena {
    pub fn new(regions: &[Region]) -> io::Result<Self> {
        let size = regions.iter().map(|region| region.size).sum::<u64>() as usize;
        // SAFETY: the name ends with a NUL; the mapping is new and touches nothing else.
        unsafe {
            let fd = libc::memfd_create(b"arena\0".as_ptr().cast(), libc::MFD_CLOEXEC);
            if fd < 0 || libc::ftruncate(fd, size as libc::off_t) != 0 {
                return Err(io::Error::last_os_error());
            }
            let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), size, prot, flags, fd, 0);
            libc::close(fd);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Arena { base: base.cast(), size })
        }
    }

    /// The host address of a byte; `offset` is one of a region or a place of this arena's layout.
    pub fn at(&self, offset: u64) -> *mut u8 {
        assert!((offset as usize) < self.size);
        // SAFETY: inside of the mapping.
        unsafe { self.base.add(offset as usize) }
    }

    pub fn hosts(&self, places: &[Place]) -> Vec<*mut u64> {
        places.iter().map(|place| self.at(place.offset).cast()).collect()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this arena's own.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}
