#![no_main]

#[expect(dead_code, reason = "this target uses one function of them")]
#[path = "../properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::authentik_page(data));
