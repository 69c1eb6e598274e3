//! The table of scenarios. Each ends with the cluster as it found it: healthy, and nothing lost.

mod basic;
mod beside;
mod disks;
mod edits;
mod figures;
mod hands;
mod issuer;
mod midway;
mod nodes;
mod operators;
mod plugin;
mod pods;
mod tls;
mod told;
mod upgrade;

use std::pin::Pin;

use anyhow::Result;

use super::cluster::Cluster;
pub use basic::{apply, deletion, etcdctl, recover, story, writer_verdict};

type Running<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

pub struct Row {
    pub name: &'static str,
    pub run: for<'a> fn(&'a Cluster) -> Running<'a>,
    /// Part of what a change must pass; the others are run with `--all`.
    pub is_required: bool,
    /// It stops or cuts off nodes.
    pub needs_docker: bool,
    /// It calls `kubectl quorate`.
    pub needs_plugin: bool,
    /// It installs the chart.
    pub needs_helm: bool,
    /// It upgrades from another build.
    pub needs_previous: bool,
    /// For a while nobody can tell the truth: there is no operator, or no API server.
    pub is_blind: bool,
}

const fn more(name: &'static str, run: for<'a> fn(&'a Cluster) -> Running<'a>) -> Row {
    Row {
        name,
        run,
        is_required: false,
        needs_docker: false,
        needs_plugin: false,
        needs_helm: false,
        needs_previous: false,
        is_blind: false,
    }
}

const fn required(name: &'static str, run: for<'a> fn(&'a Cluster) -> Running<'a>) -> Row {
    Row { is_required: true, ..more(name, run) }
}

const fn on_nodes(name: &'static str, run: for<'a> fn(&'a Cluster) -> Running<'a>) -> Row {
    Row { needs_docker: true, ..more(name, run) }
}

const fn by_helm(name: &'static str, run: for<'a> fn(&'a Cluster) -> Running<'a>) -> Row {
    Row { needs_helm: true, is_blind: true, ..more(name, run) }
}

const fn by_plugin(row: Row) -> Row {
    Row { needs_plugin: true, ..row }
}

const fn from_previous(row: Row) -> Row {
    Row { needs_previous: true, ..row }
}

const fn blind(row: Row) -> Row {
    Row { is_blind: true, ..row }
}

/// In the order they run.
pub const TABLE: &[Row] = &[
    required("bad_input_is_refused_with_field_and_remedy", |c| Box::pin(basic::bad_input(c))),
    blind(required("scale_to_five_with_the_operator_killed_midway", |c| Box::pin(basic::scale_out(c)))),
    required("leader_pod_deleted_a_new_leader_serves", |c| Box::pin(basic::leader_deleted(c))),
    required("leader_record_deleted_it_hands_over_and_is_replaced", |c| Box::pin(hands::leader_record_deleted(c))),
    required("scale_back_to_three", |c| Box::pin(basic::scale_in(c))),
    required("config_roll_takes_the_leader_last", |c| Box::pin(edits::config_roll(c))),
    required("record_lost_by_hand_comes_back_with_its_member", |c| Box::pin(hands::record_orphaned(c))),
    required("damaged_secret_is_made_anew", |c| Box::pin(tls::damaged(c))),
    required("cert_manager_issues_what_members_use", |c| Box::pin(tls::cert_manager(c))),
    required("keys_are_told_nowhere", |c| Box::pin(tls::told_nowhere(c))),
    more("cluster_of_an_older_operator_stays_plain", |c| Box::pin(tls::older(c))),
    more("tls_off_to_required_live_and_back", |c| Box::pin(tls::off_to_required(c))),
    more("cert_expired_member_recovers", |c| Box::pin(tls::expired(c))),
    blind(more("cert_rotation_no_errors", |c| Box::pin(tls::rotation(c)))),
    more("scale_flip_5_3_5_before_finish", |c| Box::pin(edits::scale_flip(c))),
    more("scale_flip_at_once_leaves_nothing", |c| Box::pin(edits::scale_flip_at_once(c))),
    more("scale_1_7_3", |c| Box::pin(edits::scale_1_7_3(c))),
    blind(more("scale_to_zero_and_wake_keeps_cluster_id", |c| Box::pin(edits::sleep_and_wake(c)))),
    more("scale_in_victim_is_leader", |c| Box::pin(midway::leader_scaled_in(c))),
    more("scale_in_refused_when_margin_zero", |c| Box::pin(midway::removal_waits_for_quorum(c))),
    more("scale_down_up_does_not_reuse_stale_pvc", |c| Box::pin(midway::kept_volumes(c))),
    more("second_learner_blocked", |c| Box::pin(hands::second_learner(c))),
    more("learner_removed_by_hand_is_rebuilt", |c| Box::pin(hands::learner_removed(c))),
    more("bootstrap_spec_change_midway_is_taken", |c| Box::pin(midway::bootstrap_edited(c))),
    more("bootstrap_failed_is_told_and_deletable", |c| Box::pin(midway::bootstrap_failed(c))),
    more("upgrade_and_scale_same_edit_is_ordered", |c| Box::pin(midway::roll_and_scale(c))),
    more("upgrade_with_one_unhealthy_member_fixes_it_first", |c| Box::pin(midway::unhealthy_first(c))),
    from_previous(more("upgrade_between_two_builds_opens_the_gate_at_its_end", |c| Box::pin(upgrade::two_builds(c)))),
    more("pause_blocks_every_mutation", |c| Box::pin(edits::pause(c))),
    more("bad_image_stops_after_one_and_reverts", |c| Box::pin(edits::bad_image(c))),
    more("unschedulable_stops_after_one_and_reverts", |c| Box::pin(edits::unschedulable(c))),
    more("learner_that_cannot_start_hurts_nobody", |c| Box::pin(edits::learner_bad_image(c))),
    more("config_change_each_field_alone_is_applied", |c| Box::pin(edits::each_field(c))),
    more("gitops_reapply_no_drift", |c| Box::pin(edits::reapply(c))),
    more("quiet_cluster_is_left_alone", |c| Box::pin(edits::quiet(c))),
    more("topology_is_told_from_real_zones", |c| Box::pin(beside::topology(c))),
    more("invalid_spec_revert_heals_and_kstatus_agrees", |c| Box::pin(beside::invalid(c))),
    more("approval_is_waited_for", |c| Box::pin(beside::approval(c))),
    more("volume_expand_online", |c| Box::pin(beside::expand(c))),
    more("volume_shrink_and_class_move_by_surge", |c| Box::pin(beside::surge(c))),
    more("majority_pvc_lost_is_told_and_never_bootstrapped", |c| Box::pin(beside::majority_lost(c))),
    more("same_name_recreate_keeps_new_pvc", |c| Box::pin(beside::namesake(c))),
    more("hostile_manifests_have_no_effect", |c| Box::pin(edits::hostile(c))),
    more("volume_lost_member_is_replaced", |c| Box::pin(hands::volume_lost(c))),
    more("pvc_deleted_by_human_member_serves_until_replaced", |c| Box::pin(hands::claim_deleted(c))),
    more("leader_volume_lost_member_is_replaced", |c| Box::pin(hands::leader_volume_lost(c))),
    more("member_removed_by_hand_is_not_added_again", |c| Box::pin(hands::removed_by_hand(c))),
    more("foreign_member_is_reported_and_left_alone", |c| Box::pin(hands::foreign_member(c))),
    more("shared_objects_deleted_by_hand_come_back", |c| Box::pin(hands::shared_objects(c))),
    more("slow_terminating_pvc_holds_nobody_up", |c| Box::pin(hands::stuck_finalizer(c))),
    more("quota_refuses_pods", |c| Box::pin(hands::quota(c))),
    more("cr_deleted_while_it_is_made", |c| Box::pin(hands::deleted_midway(c))),
    more("cr_delete_without_quorum_finishes", |c| Box::pin(hands::deleted_without_quorum(c))),
    more("pod_delete_follower", |c| Box::pin(pods::follower_deleted(c))),
    more("delete_two_of_three_pods_recovers", |c| Box::pin(pods::two_of_three(c))),
    more("delete_all_pods_recovers", |c| Box::pin(pods::all_pods(c))),
    more("transient_quorum_loss_never_triggers_recovery", |c| Box::pin(pods::quorum_away(c))),
    more("pod_delete_leader_x10", |c| Box::pin(pods::leader_ten_times(c))),
    more("evictions_share_one_budget", |c| Box::pin(pods::evictions(c))),
    on_nodes("evict_unhealthy_pod_allowed", |c| Box::pin(pods::evict_unhealthy(c))),
    blind(more("drain_node_sequential_two_nodes", |c| Box::pin(pods::drain_two(c)))),
    blind(more("operator_absent_during_leader_loss", |c| Box::pin(pods::operator_absent(c)))),
    blind(more("missed_delete_event", |c| Box::pin(operators::missed_deletions(c)))),
    blind(more("operator_killed_at_random", |c| Box::pin(pods::operator_killed(c)))),
    blind(more("operator_upgrade_restarts_nothing", |c| Box::pin(pods::operator_restarted(c)))),
    by_helm("namespace_scoped_rbac_only", |c| Box::pin(operators::scoped(c))),
    by_helm("helm_install_upgrade_uninstall_keeps_data", |c| Box::pin(operators::chart_comes_and_goes(c))),
    more("two_operators_race", |c| Box::pin(pods::two_operators(c))),
    blind(on_nodes("node_frozen_and_back", |c| Box::pin(nodes::node_frozen(c)))),
    blind(on_nodes("kubelet_stopped_and_back", |c| Box::pin(nodes::kubelet_stopped(c)))),
    blind(on_nodes("api_server_away_for_a_minute", |c| Box::pin(nodes::no_api_server(c)))),
    blind(on_nodes("api_server_restarted_midway", |c| Box::pin(nodes::api_server_restarted(c)))),
    blind(on_nodes("karpenter_rotation_keeps_floor", |c| Box::pin(nodes::rotation(c)))),
    blind(on_nodes("zone_loss_matches_prediction", |c| Box::pin(nodes::zone_lost(c)))),
    blind(on_nodes("force_delete_pod_node_cut_off_no_double_identity", |c| Box::pin(nodes::forced_off_the_books(c)))),
    more("status_leader_consistent_10k_samples", |c| Box::pin(told::samples(c))),
    blind(on_nodes("status_truth_when_unreachable", |c| Box::pin(told::unreachable(c)))),
    on_nodes("one_wedged_cluster_does_not_delay_50", |c| Box::pin(operators::crowd(c))),
    by_plugin(more("kubectl_quorate_shows_and_asks", |c| Box::pin(plugin::tour(c)))),
    by_plugin(more("kubectl_quorate_replaces_a_member", |c| Box::pin(plugin::replace(c)))),
    on_nodes("data_dir_corrupt_one_member", |c| Box::pin(disks::damaged(c))),
    on_nodes("data_dir_beyond_repair_member_is_replaced", |c| Box::pin(disks::beyond_repair(c))),
    on_nodes("returning_old_member_is_fenced", |c| Box::pin(disks::returned(c))),
    on_nodes("disk_full_then_expand", |c| Box::pin(disks::full(c))),
    on_nodes("data_dir_lost_member_is_replaced_not_bootstrapped", |c| Box::pin(disks::data_dir_lost(c))),
    more("rolling_restart_of_three_fails_no_request", |c| Box::pin(figures::rolling_restart(c, 3))),
    more("rolling_restart_of_five_fails_no_request", |c| Box::pin(figures::rolling_restart(c, 5))),
    more("large_volume_lost_member_is_replaced_in_a_minute", |c| Box::pin(figures::large_volume_lost(c))),
];
