#![no_main]

use dezky_core::testkit::ManualRuntime;
use dezky_ingest::testkit::properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    properties::authentik_page(data, &ManualRuntime::new(1));
});
