//! The only thread that flushes. While one flush is under way the driver fills the next batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use quorate_log::{Disk, Log, LogError};
use quorate_raft::types::{Record, WriteSeq};

use crate::clock;
use crate::driver::{DriverInput, Inbox};
use crate::handle::Shared;

/// After this long without a write the tail is sealed with a durable watermark and old segments are tended to.
const QUIET: Duration = Duration::from_millis(500);

/// When the flush under way began, in microseconds of the driver's clock; 0 when none is.
#[derive(Debug, Default)]
pub struct FlushBegan(AtomicU64);

/// Appends batches until the driver is gone. Any failure is reported once; nothing is promised afterwards.
pub(crate) fn run<D: Disk>(
    mut log: Log<D>,
    batches: &Receiver<Vec<(WriteSeq, Record)>>,
    inbox: &Inbox,
    began: &FlushBegan,
    shared: &Arc<Shared>,
) {
    let mut is_sealed = true;
    loop {
        let mut batch = match batches.recv_timeout(QUIET) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => {
                if !is_sealed && let Err(error) = log.seal_tail() {
                    return inbox.tell(failed(error));
                }
                is_sealed = true;
                if let Err(error) = log.tend() {
                    return inbox.tell(failed(error));
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Ok(more) = batches.try_recv() {
            batch.extend(more);
        }
        let upto = batch.last().expect("the driver submits no empty batch").0;
        let start = clock::now();
        began.0.store(start.0, Ordering::Release);
        let result = log.append(&batch);
        began.0.store(0, Ordering::Release);
        shared.flushes.record(clock::now().since(start));
        is_sealed = false;
        match result {
            Ok(()) => inbox.tell(DriverInput::Written { upto }),
            Err(error) => return inbox.tell(failed(error)),
        }
    }
}

/// With the operating system's own reason, which a person needs most.
fn failed(error: LogError) -> DriverInput {
    DriverInput::WriteFailed { error: format!("{:#}", anyhow::Error::from(error)) }
}

/// Tells the driver once for each flush that takes longer than `stall_us`.
pub(crate) fn watch(began: &FlushBegan, stall_us: u64, inbox: &Inbox) {
    let mut told = 0;
    loop {
        std::thread::sleep(Duration::from_micros(stall_us / 5));
        let start = began.0.load(Ordering::Acquire);
        if start != 0 && start != told && clock::now().0.saturating_sub(start) > stall_us {
            told = start;
            if inbox.send(DriverInput::DiskStalled).is_err() {
                return;
            }
        }
    }
}
