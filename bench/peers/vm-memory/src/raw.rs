// SPDX-License-Identifier: Apache-2.0
//! The limit: the same accesses through pointers that are known before. The C++ side measures it, too; that both
//! agree says that the machine was quiet and the loops are alike.

use std::time::Duration;

use crate::measure::{best, keep, Row};

pub fn measure(row: Row, hosts: &[*mut u64], budget: Duration) {
    row.measure("raw_read_u64", budget, hosts.len(), || read(hosts));
    let dependent = best(budget, hosts.len(), || read_dependent(hosts));
    row.print("raw_read_u64", "dependent", dependent);
    row.measure("raw_write_u64", budget, hosts.len(), || write(hosts));
}

/// The places are as many bytes before the end of their region as the buffer has.
pub fn measure_copies(row: Row, name: &str, hosts: &[*mut u64], buffer: &mut [u8], budget: Duration) {
    let count = buffer.len();
    row.measure(&format!("raw_read_{}", name), budget, hosts.len(), || {
        for host in hosts.iter().map(|host| host.cast::<u8>()) {
            // SAFETY: so many bytes are there, see above; the buffer is no part of the arena.
            unsafe { std::ptr::copy_nonoverlapping(host, buffer.as_mut_ptr(), count) };
            keep(host as u64);
        }
    });
    row.measure(&format!("raw_write_{}", name), budget, hosts.len(), || {
        for host in hosts.iter().map(|host| host.cast::<u8>()) {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), host, count) };
            keep(host as u64);
        }
    });
}

#[inline(never)]
fn read(hosts: &[*mut u64]) {
    let mut sum = 0u64;
    for &host in hosts {
        // SAFETY: a place in the arena.
        sum = sum.wrapping_add(unsafe { host.read_unaligned() });
    }
    keep(sum);
}

#[inline(never)]
fn read_dependent(hosts: &[*mut u64]) {
    let mut last = 0u64;
    for &host in hosts {
        // SAFETY: a place in the arena; its bytes are zero, so that the last value moves nothing.
        last = unsafe { host.cast::<u8>().wrapping_add(last as usize).cast::<u64>().read_unaligned() };
    }
    keep(last);
}

#[inline(never)]
fn write(hosts: &[*mut u64]) {
    for &host in hosts {
        // SAFETY: a place in the arena.
        unsafe { host.write_unaligned(0) };
    }
    keep(0);
}
