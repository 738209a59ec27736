#![no_main]

use dezky_ingest::testkit::properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::framer(data));
