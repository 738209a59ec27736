//! Group commit with leader and followers, without spawning tasks.
//!
//! Callers that arrive during a commit join the next group. A group's commit is one shared future,
//! driven by whichever member is polled: if a member is dropped (a client hangs up), the others
//! continue to poll the same commit.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use futures_util::lock::Mutex as AsyncMutex;

/// Maximum weight of a group; a heavier job is committed alone.
const MAX_GROUP_WEIGHT: usize = 5_000;

type Outcomes<R> = Arc<Vec<R>>;
type GroupFuture<R> = Shared<BoxFuture<'static, Outcomes<R>>>;

/// Runs jobs in groups, one group at a time.
pub(super) struct GroupCommit<J, R> {
    open: Mutex<Option<OpenGroup<J, R>>>,
    turn: Arc<AsyncMutex<()>>,
}

struct OpenGroup<J, R> {
    jobs: Arc<Mutex<Jobs<J>>>,
    /// Weak, so that a group is dropped with its last member. Otherwise a future that nobody polls
    /// could keep its place in the queue.
    done: WeakShared<BoxFuture<'static, Outcomes<R>>>,
}

struct Jobs<J> {
    list: Vec<J>,
    weight: usize,
    closed: bool,
}

impl<J, R> GroupCommit<J, R>
where
    J: Send + 'static,
    R: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        Self { open: Mutex::new(None), turn: Arc::new(AsyncMutex::new(())) }
    }

    /// Runs `job` in a group; `commit` returns one result per job of the group, in order.
    pub(super) async fn submit<F>(&self, job: J, weight: usize, commit: F) -> R
    where
        F: FnOnce(Vec<J>) -> BoxFuture<'static, Vec<R>> + Send + 'static,
    {
        let (index, done) = self.join(job, weight, commit);
        let outcomes = done.await;
        outcomes[index].clone()
    }

    fn join<F>(&self, job: J, weight: usize, commit: F) -> (usize, GroupFuture<R>)
    where
        F: FnOnce(Vec<J>) -> BoxFuture<'static, Vec<R>> + Send + 'static,
    {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = open.as_ref()
            && let Some(done) = group.done.upgrade()
        {
            let mut jobs = group.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            if !jobs.closed && jobs.weight + weight <= MAX_GROUP_WEIGHT {
                jobs.list.push(job);
                jobs.weight += weight;
                return (jobs.list.len() - 1, done);
            }
        }
        let jobs = Arc::new(Mutex::new(Jobs { list: vec![job], weight, closed: false }));
        let done = Self::run(Arc::clone(&self.turn), Arc::clone(&jobs), commit).shared();
        *open = done.downgrade().map(|done| OpenGroup { jobs, done });
        (0, done)
    }

    /// Waits for the group's turn, closes the group and commits it.
    fn run<F>(
        turn: Arc<AsyncMutex<()>>,
        jobs: Arc<Mutex<Jobs<J>>>,
        commit: F,
    ) -> BoxFuture<'static, Outcomes<R>>
    where
        F: FnOnce(Vec<J>) -> BoxFuture<'static, Vec<R>> + Send + 'static,
    {
        async move {
            let _turn = turn.lock().await;
            let list = {
                let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
                jobs.closed = true;
                std::mem::take(&mut jobs.list)
            };
            Arc::new(commit(list).await)
        }
        .boxed()
    }
}
