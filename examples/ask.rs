//! ask
fn main() {}
