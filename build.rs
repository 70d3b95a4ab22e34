//! Cargo sees no folder that a macro reads: without this a new migration is missing in the binary until a source file
//! changes.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
