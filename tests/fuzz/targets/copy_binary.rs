#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::fuzzing::copy_binary(bytes));
