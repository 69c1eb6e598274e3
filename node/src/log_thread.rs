//! The only thread that flushes. While one flush is under way the driver fills the next batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use quorate_log::{Disk, Log, LogError, Verdict};
use quorate_raft::types::{Record, Time, WriteSeq};

use crate::clock;
use crate::driver::{DriverInput, Inbox};
use crate::handle::Shared;

/// After this long without a write the tail is sealed with a durable watermark and old segments are tended to.
const QUIET: Duration = Duration::from_millis(500);
/// The free room is measured this often under load.
const MEASURE_EVERY_US: u64 = 500_000;
/// A batch that found no room is tried again this often: somebody may free some.
const NO_SPACE_PAUSE: Duration = Duration::from_millis(200);

/// Since when the disk is at work, in microseconds of the driver's clock; 0 while it is not.
#[derive(Debug, Default)]
pub struct FlushBegan(AtomicU64);

impl FlushBegan {
    fn begin(&self) -> Busy<'_> {
        self.0.store(clock::now().0.max(1), Ordering::Release);
        Busy(self)
    }
}

/// While it lives the disk is at work.
struct Busy<'a>(&'a FlushBegan);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Release);
    }
}

/// Appends batches until the driver is gone. Any failure is reported once; nothing is promised afterwards.
pub(crate) fn run<D: Disk>(
    log: Log<D>,
    batches: &Receiver<Vec<(WriteSeq, Record)>>,
    inbox: &Inbox,
    began: &FlushBegan,
    shared: &Arc<Shared>,
) {
    let mut thread = LogThread { log, began, shared, is_sealed: true, measured: Time(0) };
    if let Err(error) = thread.serve(batches, inbox) {
        // With the operating system's own reason, which a person needs most.
        inbox.tell(DriverInput::WriteFailed { error: format!("{:#}", anyhow::Error::from(error)) });
    }
}

struct LogThread<'a, D> {
    log: Log<D>,
    began: &'a FlushBegan,
    shared: &'a Arc<Shared>,
    is_sealed: bool,
    measured: Time,
}

impl<D: Disk> LogThread<'_, D> {
    fn serve(&mut self, batches: &Receiver<Vec<(WriteSeq, Record)>>, inbox: &Inbox) -> Result<(), LogError> {
        self.measure()?;
        loop {
            let mut batch = match batches.recv_timeout(QUIET) {
                Ok(batch) => batch,
                Err(RecvTimeoutError::Timeout) => {
                    self.rest()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            while let Ok(more) = batches.try_recv() {
                batch.extend(more);
            }
            let upto = batch.last().expect("the driver submits no empty batch").0;
            if !self.append(&batch)? {
                return Ok(());
            }
            inbox.tell(DriverInput::Written { upto });
            // Behind the answer, so that nobody waits for it but the next batch.
            let _busy = self.began.begin();
            self.log.tend_in_pace()?;
            if clock::now().since(self.measured) >= MEASURE_EVERY_US {
                self.measure()?;
            }
        }
    }

    /// Nothing to write: what is durable is noted as such, and old segments go.
    fn rest(&mut self) -> Result<(), LogError> {
        let _busy = self.began.begin();
        if !self.is_sealed {
            self.log.seal_tail()?;
            self.is_sealed = true;
        }
        self.log.tend()?;
        self.measure()
    }

    fn measure(&mut self) -> Result<(), LogError> {
        self.measured = clock::now();
        self.shared.disk.note(self.log.space()?);
        Ok(())
    }

    /// Appends, and on a volume without any room waits for some: nothing of the batch was accepted, so nothing is lost by
    /// trying again. Meanwhile the watch reports a stall, so a leader hands over; heartbeats and reads go on. False: the
    /// process is ending.
    fn append(&mut self, batch: &[(WriteSeq, Record)]) -> Result<bool, LogError> {
        let start = clock::now();
        let _busy = self.began.begin();
        let mut is_told = false;
        loop {
            match self.log.append(batch) {
                Ok(()) => break,
                Err(error) if error.verdict() == Verdict::Retry => {
                    if !is_told {
                        tracing::error!("a write waits for room: {error}");
                        is_told = true;
                    }
                    self.measure()?;
                    // A dropped segment that waits for its removal is room.
                    self.log.tend()?;
                    std::thread::sleep(NO_SPACE_PAUSE);
                    if self.shared.is_ending() {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if is_told {
            tracing::info!("the write that waited for room is durable");
        }
        self.shared.flushes.record(clock::now().since(start));
        self.is_sealed = false;
        Ok(true)
    }
}

/// Tells the driver once for each piece of work of the disk that takes longer than `stall_us`, while it still hangs.
pub(crate) fn watch(began: &FlushBegan, stall_us: u64, inbox: &Inbox) {
    let mut told = 0;
    loop {
        std::thread::sleep(Duration::from_micros(stall_us / 5));
        let start = began.0.load(Ordering::Acquire);
        if start != 0 && start != told && clock::now().0.saturating_sub(start) > stall_us {
            told = start;
            tracing::warn!("the disk has not answered for {} ms", stall_us / 1_000);
            if inbox.send(DriverInput::DiskStalled).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_flush_that_hangs_is_reported_while_it_hangs_and_once() {
        let began = Arc::new(FlushBegan::default());
        let (sender, inputs) = mpsc::channel();
        {
            let began = began.clone();
            std::thread::spawn(move || watch(&began, 20_000, &Inbox(sender)));
        }
        assert!(inputs.recv_timeout(Duration::from_millis(100)).is_err(), "a disk at rest is no stall");
        let busy = began.begin();
        let told = inputs.recv_timeout(Duration::from_secs(5)).expect("told while the flush hangs");
        assert!(matches!(told, DriverInput::DiskStalled));
        assert!(inputs.recv_timeout(Duration::from_millis(100)).is_err(), "told once for one flush");
        drop(busy);
        let _again = began.begin();
        assert!(inputs.recv_timeout(Duration::from_secs(5)).is_ok(), "the next flush that hangs is told too");
    }
}
