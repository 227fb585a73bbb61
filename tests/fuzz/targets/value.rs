#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::fuzzing::value_of_any_type(bytes));
