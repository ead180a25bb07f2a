// SPDX-License-Identifier: Apache-2.0
//! Tells the program which compiler made it, as compare.py shows that.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = match Command::new(rustc).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(_) => "rustc".to_owned(),
    };
    println!("cargo:rustc-env=PEER_RUSTC={}", version);
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC");
}
