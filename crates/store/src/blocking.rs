//! Blocking work away from the threads that serve futures.

/// Runs `work` on the pool for blocking calls. A panic in it is passed on.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the runtime shuts down; then nobody waits for this future any more.
            Err(_) => std::future::pending().await,
        },
    }
}
