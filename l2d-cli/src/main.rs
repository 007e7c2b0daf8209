//! The command `l2d`.
fn main() {}
