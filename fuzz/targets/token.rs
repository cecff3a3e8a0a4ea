//! Fuzz target `token`: see the module of that name.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| thalweg_fuzz::token::run(input));
