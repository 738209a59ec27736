//! Deciding allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use dezky_core::testkit::ManualRuntime;
use dezky_flags::testkit::FlagGenerator;
use dezky_flags::{FlagEvaluator, FlagSet};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "an allocator that counts, for this test alone")]
// SAFETY: everything is the system allocator's; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What this thread allocates while `run` runs.
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
    let set = FlagSet::compile(&flags);
    let askers: Vec<_> = (0..50).map(|_| generator.asker()).collect();
    let counted = allocations(|| {
        for asker in &askers {
            let context = asker.context();
            for flag in &flags {
                black_box(set.evaluate(&flag.key, &context));
            }
            black_box(set.evaluate("unknown", &context));
            for decision in set.evaluate_all(&context) {
                black_box(decision);
            }
        }
    });
    assert_eq!(counted, 0);
    assert!(allocations(|| drop(black_box(Box::new(1)))) > 0, "the counter counts");
}
