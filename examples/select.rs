//! select
fn main() {}
