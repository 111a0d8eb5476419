//! download
fn main() {}
