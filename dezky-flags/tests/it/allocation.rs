//! Evaluating flags allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use dezky_core::testkit::ManualRuntime;
use dezky_flags::testkit::FlagGenerator;
use dezky_flags::{Bits, DigestEngine, FlagEvaluator, FlagSet};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "a counting allocator, only for this test")]
// SAFETY: delegates to the system allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: upheld by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: upheld by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The number of bytes that this thread allocates while `run` runs.
pub(crate) fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    run();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn deciding_allocates_nothing() {
    let runtime = ManualRuntime::new(3);
    let mut generator = FlagGenerator::new(&runtime);
    let flags = generator.flags(200);
    let askers: Vec<_> = (0..50).map(|_| generator.asker()).collect();
    for engine in DigestEngine::ALL {
        let set = FlagSet::compile(&flags).with_digest_engine(engine);
        let rows: Vec<_> = askers.iter().map(|asker| set.bucket_row(&asker.tenant_id)).collect();
        let mut values = Bits::new();
        set.values_into(&askers[0].context(), &mut values);
        let mut json = String::new();
        set.write_json(&values, &mut json);
        let counted = allocations(|| {
            for (asker, row) in askers.iter().zip(&rows) {
                let context = asker.context();
                for flag in &flags {
                    black_box(set.evaluate(&flag.key, &context));
                    black_box(set.handle(&flag.key).map(|flag| flag.evaluate(&context)));
                }
                black_box(set.evaluate("unknown", &context));
                for decision in set.evaluate_all(&context) {
                    black_box(decision);
                }
                set.values_with_row(row, &context, &mut values);
                set.values_into(&context, &mut values);
                json.clear();
                set.write_json(&values, &mut json);
            }
        });
        assert_eq!(counted, 0, "{engine:?}");
    }
    assert!(allocations(|| drop(black_box(Box::new(1)))) > 0, "the counter counts");
}
