//! Processes on the simulated machine: every task belongs to the process of the node it runs for, and a process can be
//! stopped for a while (SIGSTOP) or killed between any two steps of any of its tasks.
//!
//! [`NodeRuntime`] is openraft's simulated runtime with that added: a task spawned by a task belongs to the same process.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::{SimInstant, SimRuntime};
use raft_store::types::NodeId;

thread_local! {
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// One life of a node, from start to kill.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    node: NodeId,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    stopped: bool,
    killed: bool,
    next_task: u64,
    tasks: BTreeMap<u64, Waker>,
}

impl Process {
    pub(crate) fn new(node: NodeId) -> Self {
        Self { node, inner: Arc::default() }
    }

    /// Runs `future` as a task of this process. A kill ends it between two steps.
    pub(crate) fn spawn<T>(&self, future: impl Future<Output = T> + Send + 'static)
    where
        T: Send + 'static,
    {
        drop(SimRuntime::spawn(Task::new(Some(self.clone()), future)));
    }

    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
    }

    pub(crate) fn go_on(&self) {
        self.lock().stopped = false;
        self.wake_all();
    }

    /// Nothing of it runs again. Its tasks are dropped when the executor comes to them.
    pub(crate) fn kill(&self) {
        self.lock().killed = true;
        self.wake_all();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.lock().killed
    }

    fn wake_all(&self) {
        let wakers: Vec<_> = self.lock().tasks.values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node whose task runs now.
pub(crate) fn current_node() -> Option<NodeId> {
    CURRENT.with(|current| current.borrow().as_ref().map(|process| process.node))
}

/// A task outside every process: the network, the clients, whoever injects faults.
pub(crate) fn spawn_outside(future: impl Future<Output = ()> + Send + 'static) {
    drop(SimRuntime::spawn(Task::new(None, future)));
}

struct Task<F> {
    process: Option<Process>,
    number: Option<u64>,
    /// `None` once it is done or its process was killed.
    future: Option<Pin<Box<F>>>,
}

impl<F> Task<F> {
    fn new(process: Option<Process>, future: F) -> Self {
        Self { process, number: None, future: Some(Box::pin(future)) }
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        if let Some(process) = &this.process {
            let mut inner = process.lock();
            if inner.killed {
                drop(inner);
                let _entered = Entered::new(this.process.clone());
                this.future = None;
                return Poll::Pending;
            }
            if this.number.is_none() {
                let number = inner.next_task;
                inner.next_task += 1;
                inner.tasks.insert(number, cx.waker().clone());
                this.number = Some(number);
            }
            if inner.stopped {
                return Poll::Pending;
            }
        }
        let Some(future) = &mut this.future else { return Poll::Pending };
        let _entered = Entered::new(this.process.clone());
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            this.future = None;
        }
        polled
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        if let (Some(process), Some(number)) = (&self.process, self.number) {
            process.lock().tasks.remove(&number);
        }
    }
}

/// Marks the running process until it is dropped.
struct Entered(Option<Process>);

impl Entered {
    fn new(process: Option<Process>) -> Self {
        Self(CURRENT.with(|current| current.replace(process)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(self.0.take()));
    }
}

/// openraft's simulated runtime, with processes.
#[derive(Debug)]
pub(crate) struct NodeRuntime(SimRuntime);

impl NodeRuntime {
    pub(crate) fn with_seed(seed: u64) -> Self {
        Self(SimRuntime::with_seed(seed))
    }
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = SimInstant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        let process = CURRENT.with(|current| current.borrow().clone());
        SimRuntime::spawn(Task::new(process, future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: SimInstant) -> Self::Sleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: SimInstant, future: F) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(SimRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(f: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        SimRuntime::spawn_blocking(f)
    }
}
