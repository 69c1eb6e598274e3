//! Everything worth measuring, in Prometheus' text format. Read from what is published anyway; counts nothing itself.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_raft::RoleName;

use super::{Api, ETCD_VERSION, VERSION, health, is_learner};
use crate::clock;
use crate::disk::DiskHealth;
use crate::handle::{FLUSH_BUCKETS_US, Flushes};
use crate::tls::Plane;

/// Builds the text. Names that etcd has too follow under etcd's name, so that its dashboards and tools work.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }
    fn value(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }
    fn gauge(&mut self, names: &[&str], help: &str, value: impl Display) {
        for name in names {
            self.head(name, "gauge", help);
            self.value(name, &value);
        }
    }
    fn counter(&mut self, names: &[&str], help: &str, value: impl Display) {
        for name in names {
            self.head(name, "counter", help);
            self.value(name, &value);
        }
    }

    fn flushes(&mut self, names: &[&str], flushes: &Flushes) {
        for name in names {
            self.head(name, "histogram", "Seconds that a flush of the log took.");
            // The count is read last and the buckets first, so that no bucket is above it.
            let mut below = 0;
            for (bound_us, bucket) in FLUSH_BUCKETS_US.iter().zip(&flushes.buckets) {
                below += bucket.load(Ordering::Relaxed);
                self.value(&format!("{name}_bucket{{le=\"{}\"}}", seconds(*bound_us)), below);
            }
            let count = flushes.count.load(Ordering::Relaxed).max(below);
            self.value(&format!("{name}_bucket{{le=\"+Inf\"}}"), count);
            self.value(&format!("{name}_sum"), seconds(flushes.sum_us.load(Ordering::Relaxed)));
            self.value(&format!("{name}_count"), count);
        }
    }
}

/// Exact, without floating point.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

pub(crate) fn text(api: &Api) -> String {
    let (status, view, now_us) = (api.handle().status(), api.handle().view(), clock::now().0);
    let raft = &status.raft;
    let is_leader = raft.role == RoleName::Leader;
    let contact_us = if is_leader { 0 } else { raft.leader_contact.map_or(now_us, |at| now_us.saturating_sub(at.0)) };
    let mut page = Page(String::with_capacity(8 << 10));
    page.head("quorate_info", "gauge", "What runs here.");
    page.value(&format!("quorate_info{{version=\"{VERSION}\",etcd_version=\"{ETCD_VERSION}\"}}"), 1);
    page.gauge(&["quorate_term"], "Current term.", raft.term);
    page.gauge(
        &["quorate_commit_index", "etcd_server_proposals_committed_total"],
        "Highest index known to be committed.",
        raft.commit.max(view.applied_index()),
    );
    page.gauge(
        &["quorate_applied_index", "etcd_server_proposals_applied_total"],
        "Highest index applied.",
        view.applied_index(),
    );
    page.gauge(&["quorate_last_index"], "Last index of the log.", raft.last_index);
    page.gauge(&["quorate_durable_index"], "Last index of the log that is on disk.", raft.durable);
    page.gauge(
        &["quorate_pending_entries", "etcd_server_proposals_pending"],
        "Entries not committed yet.",
        raft.last_index.saturating_sub(raft.commit),
    );
    page.gauge(&["quorate_uncommitted_bytes"], "Bytes not committed yet, of a leader.", raft.uncommitted_bytes);
    page.gauge(&["quorate_is_leader", "etcd_server_is_leader"], "Whether this member leads.", u8::from(is_leader));
    page.gauge(
        &["quorate_has_leader", "etcd_server_has_leader"],
        "Whether this member knows a leader.",
        u8::from(raft.leader.is_some()),
    );
    page.gauge(
        &["quorate_is_learner", "etcd_server_is_learner"],
        "Whether this member has no vote.",
        u8::from(is_learner(&status)),
    );
    page.counter(
        &["quorate_leader_changes_total", "etcd_server_leader_changes_seen_total"],
        "Leader changes seen by this process.",
        status.elections,
    );
    page.counter(
        &["quorate_failovers_total"],
        "Times this member took over after a leader was lost.",
        status.failover_count,
    );
    page.gauge(
        &["quorate_last_failover_seconds"],
        "How long the last takeover by this member took.",
        seconds(status.last_failover_ms * 1_000),
    );
    page.gauge(&["quorate_heartbeat_age_seconds"], "Since the last word of a leader.", seconds(contact_us));
    page.gauge(
        &["quorate_members"],
        "Members of the committed configuration.",
        raft.committed_config.config.members.len(),
    );
    page.gauge(&["quorate_activated"], "Whether clients are served.", u8::from(status.is_activated));
    let is_ready = api.readiness().reason().is_none();
    page.gauge(&["quorate_ready"], "Whether the last linearizable read succeeded.", u8::from(is_ready));
    let is_live = health::why_not_live(&status, now_us).is_none();
    page.gauge(&["quorate_live"], "Whether the driver moves.", u8::from(is_live));
    page.counter(&["quorate_driver_inputs_total"], "Inputs the driver has handled.", status.inputs);
    page.gauge(&["quorate_disk_stalled"], "Whether a flush takes too long.", u8::from(raft.is_stalled));
    page.gauge(
        &["quorate_db_size_bytes", "etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes"],
        "Bytes that the versions kept occupy.",
        view.size_bytes(),
    );
    page.gauge(
        &["quorate_quota_bytes", "etcd_server_quota_backend_bytes"],
        "Bytes the state may occupy.",
        api.options().quota_bytes,
    );
    page.gauge(&["quorate_revision", "etcd_debugging_mvcc_current_revision"], "The newest revision.", view.revision());
    page.gauge(
        &["quorate_compact_revision", "etcd_debugging_mvcc_compact_revision"],
        "Revisions below are gone.",
        view.compact_revision().max(0),
    );
    page.gauge(&["quorate_changes_kept"], "Changes that are kept.", view.change_count());
    let (watchers, behind) = api.hub().counts();
    page.gauge(&["quorate_watchers", "etcd_debugging_mvcc_watcher_total"], "Watchers.", watchers);
    page.gauge(
        &["quorate_watchers_behind", "etcd_debugging_mvcc_slow_watcher_total"],
        "Watchers that read history to catch up.",
        behind,
    );
    page.flushes(&["quorate_log_flush_seconds", "etcd_disk_wal_fsync_duration_seconds"], api.handle().flushes());
    disk(&mut page, api.handle().disk());
    tls(&mut page, api);
    process(&mut page);
    page.0
}

fn tls(page: &mut Page, api: &Api) {
    let mut of_each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Plane) -> Option<i64>| {
        page.head(name, kind, help);
        for plane in api.tls().planes() {
            if let Some(value) = value(plane) {
                page.value(&format!("{name}{{plane=\"{}\"}}", plane.role.name()), value);
            }
        }
    };
    let count = |number: &AtomicU64| i64::try_from(number.load(Ordering::Relaxed)).ok();
    of_each(
        "quorate_tls_certificate_not_after_seconds",
        "gauge",
        "When the certificate in use ends, since 1970.",
        &|p| p.told().map(|told| told.not_after),
    );
    of_each("quorate_tls_reloads_total", "counter", "New certificates taken since the start.", &|p| count(&p.reloads));
    of_each("quorate_tls_reload_failures_total", "counter", "Files that could not be used: the old ones stay.", &|p| {
        count(&p.reload_failures)
    });
    of_each(
        "quorate_tls_refused_connections_total",
        "counter",
        "Connections refused for want of TLS or of a right.",
        &|p| count(&p.refused),
    );
}

fn disk(page: &mut Page, disk: &DiskHealth) {
    page.gauge(&["quorate_disk_free_bytes"], "Free on the volume of the log.", disk.free_bytes());
    page.gauge(&["quorate_disk_reserved_bytes"], "Set aside for votes and for what makes room.", disk.reserved_bytes());
    page.gauge(&["quorate_disk_low"], "Whether the volume is nearly full.", u8::from(disk.is_low()));
    page.gauge(
        &["quorate_growth_refused"],
        "Whether this leader refuses puts for want of room, here or on too many voters.",
        u8::from(disk.is_growth_refused()),
    );
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    page.counter(&["quorate_scrub_passes_total"], "Passes over all finished segments.", of(&disk.scrub_passes));
    page.counter(&["quorate_scrub_bytes_total"], "Bytes the scrub has read.", of(&disk.scrub_bytes));
    page.counter(&["quorate_rot_found_total"], "Damaged segments found by the scrub.", of(&disk.rot_found));
    page.gauge(&["quorate_rot_open"], "Damaged segments that are not repaired.", disk.rot_open());
}

/// Of the process, where the kernel tells.
fn process(page: &mut Page) {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    if let Some(kib) = field("VmRSS:") {
        page.gauge(&["process_resident_memory_bytes"], "Resident memory.", kib * 1024);
    }
    if let Some(kib) = field("VmSize:") {
        page.gauge(&["process_virtual_memory_bytes"], "Virtual memory.", kib * 1024);
    }
    if let Some(threads) = field("Threads:") {
        page.gauge(&["process_threads"], "Threads.", threads);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        page.gauge(&["process_open_fds"], "Open files.", files.count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_counts_upwards_and_ends_in_its_count() {
        let flushes = Flushes::default();
        for took_us in [100, 200, 300, 99_000_000] {
            flushes.record(took_us);
        }
        let mut page = Page(String::new());
        page.flushes(&["x"], &flushes);
        assert!(page.0.contains("x_bucket{le=\"0.000125\"} 1\n"), "{}", page.0);
        assert!(page.0.contains("x_bucket{le=\"0.000500\"} 3\n"), "{}", page.0);
        assert!(page.0.contains("x_bucket{le=\"8.000000\"} 3\n"), "{}", page.0);
        assert!(page.0.contains("x_bucket{le=\"+Inf\"} 4\n"), "{}", page.0);
        assert!(page.0.contains("x_sum 99.000600\nx_count 4\n"), "{}", page.0);
    }
}
