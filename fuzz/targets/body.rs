//! Fuzz target `body`: see the module of that name.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| thalweg_fuzz::body::run(input));
