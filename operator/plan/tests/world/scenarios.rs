//! The stories the planner must end well, whatever goes wrong around any of their steps.

use quorate_api::requests::{ANNOTATION_FENCE, ANNOTATION_REPLACE, ANNOTATION_RESTART, ANNOTATION_TRANSFER};
use quorate_plan::MemberRecord;

use super::World;
use super::run::Phase::{Blocked, Do, Settle, Steps, Ticks};
use super::run::{Phase, Scenario};

fn scenario(name: &'static str, replicas: i32, phases: Vec<Phase>) -> Scenario {
    Scenario { name, replicas, phases }
}

fn shrink_volumes(w: &mut World) {
    w.edit(|s| {
        s.storage.size = "512Mi".to_owned();
        s.storage.change_policy = quorate_api::ChangePolicy::Replace;
    });
}
fn move_volumes(w: &mut World) {
    w.edit(|s| {
        s.storage.storage_class_name = Some("fast".to_owned());
        s.storage.change_policy = quorate_api::ChangePolicy::Replace;
    });
}
fn ask_first(w: &mut World) {
    w.edit(|s| s.approval = quorate_api::Approval::Disruptive);
}
fn ask_always(w: &mut World) {
    w.edit(|s| s.approval = quorate_api::Approval::Manual);
}
fn approve(w: &mut World) {
    let plan = quorate_plan::plan(&w.intent(), &w.observe(), w.now_ms, quorate_api::names::seed("c1"));
    w.asked.insert(quorate_api::names::ANNOTATION_APPROVE.to_owned(), plan.report.plan_hash.unwrap());
}
fn sleep(w: &mut World) {
    w.edit(|s| s.replicas = 0);
}
fn wake(w: &mut World) {
    w.excuse(20);
    w.edit(|s| s.replicas = 3);
}
fn wake_1(w: &mut World) {
    w.excuse(20);
    w.edit(|s| s.replicas = 1);
}
fn wake_5(w: &mut World) {
    w.excuse(20);
    w.edit(|s| s.replicas = 5);
}
fn lose_sleeping_volume(w: &mut World) {
    let name = w.records.keys().next().unwrap().clone();
    w.disks.remove(&name);
}
fn scale_to_1(w: &mut World) {
    w.edit(|s| s.replicas = 1);
}
fn scale_to_2(w: &mut World) {
    w.edit(|s| s.replicas = 2);
}
fn scale_to_3(w: &mut World) {
    w.edit(|s| s.replicas = 3);
}
fn scale_to_5(w: &mut World) {
    w.edit(|s| s.replicas = 5);
}
fn new_image(w: &mut World) {
    w.edit(|s| s.image = "quorate:2".to_owned());
}
fn bad_image(w: &mut World) {
    w.bad_images.insert("quorate:bad".to_owned());
    w.edit(|s| s.image = "quorate:bad".to_owned());
}
fn old_image(w: &mut World) {
    w.edit(|s| s.image = "quorate:dev".to_owned());
}
fn lose_follower_pod(w: &mut World) {
    let name = w.followers()[0].clone();
    w.excuse(10);
    w.lose_pod(&name);
}
fn lose_leader_pod(w: &mut World) {
    let name = w.name_of_leader();
    w.excuse(10);
    w.lose_pod(&name);
}
fn lose_two_pods(w: &mut World) {
    let names = w.followers();
    w.excuse(20);
    w.lose_pod(&names[0]);
    w.lose_pod(&names[1]);
}
fn lose_all_pods(w: &mut World) {
    let names: Vec<_> = w.records.keys().cloned().collect();
    w.excuse(20);
    names.iter().for_each(|n| w.lose_pod(n));
}
fn lose_follower_volume(w: &mut World) {
    let name = w.followers()[0].clone();
    w.excuse(10);
    w.lose_volume(&name);
}
fn lose_leader_volume(w: &mut World) {
    let name = w.name_of_leader();
    w.excuse(10);
    w.lose_volume(&name);
}
fn lose_two_volumes(w: &mut World) {
    let names = w.followers();
    w.excuse(1_000_000);
    w.lose_volume(&names[0]);
    w.lose_volume(&names[1]);
}
fn delete_follower_record(w: &mut World) {
    let name = w.followers()[0].clone();
    w.delete_record_by_hand(&name);
}
fn delete_leader_record(w: &mut World) {
    let name = w.name_of_leader();
    w.delete_record_by_hand(&name);
}
fn vanish_follower_record(w: &mut World) {
    let name = w.followers()[0].clone();
    w.excuse(20);
    w.vanish_record(&name);
}
fn remove_follower_by_hand(w: &mut World) {
    let name = w.followers()[0].clone();
    w.excuse(20);
    w.remove_by_hand(&name);
}
fn lose_marker(w: &mut World) {
    w.objects.bootstrapped = None;
    w.objects.applied_hash = None;
    w.objects.budget_min_available = None;
}
fn kill_follower_node(w: &mut World) {
    let name = w.followers()[0].clone();
    w.excuse(10);
    w.dead.insert(name.clone());
    w.lose_pod(&name);
}
fn revive_nodes(w: &mut World) {
    w.dead.clear();
}
/// Whole minutes would only make the runs longer.
fn hurry(w: &mut World) {
    w.edit(|s| s.repair.replace_unhealthy_after = "1m".to_owned());
}
fn cut_off_follower(w: &mut World) {
    let name = w.followers()[0].clone();
    w.excuse(5);
    w.cut_off(&name);
}
fn cut_off_two(w: &mut World) {
    let names = w.followers();
    w.excuse(1_000);
    w.cut_off(&names[0]);
    w.cut_off(&names[1]);
}
fn reconnect(w: &mut World) {
    w.excuse(20);
    w.cut_off.clear();
}
fn never_replace(w: &mut World) {
    w.edit(|s| s.repair.replace_unhealthy_after = "0s".to_owned());
}
fn three_zones(w: &mut World) {
    w.zones.extend(["a", "b", "c"].map(str::to_owned));
}
/// A whole zone is gone for a while: nobody hears its member, and there is no room in it.
fn lose_zone(w: &mut World) {
    cut_off_follower(w);
    let zone = w.placed[w.cut_off.first().unwrap()].clone();
    w.zones.remove(&zone);
}
/// As above, and its volume is gone for good.
fn lose_zone_and_volume(w: &mut World) {
    lose_zone(w);
    let name = w.cut_off.pop_first().unwrap();
    w.lose_volume(&name);
}
fn starve_learners(w: &mut World) {
    w.learners_starve = true;
}
fn feed_learners(w: &mut World) {
    w.learners_starve = false;
}
fn pause(w: &mut World) {
    w.edit(|s| s.paused = true);
}
fn unpause(w: &mut World) {
    w.edit(|s| s.paused = false);
}
fn delete(w: &mut World) {
    w.delete_cluster();
}
fn delete_with_volumes(w: &mut World) {
    w.edit(|s| s.storage.on_cluster_delete = quorate_api::Keep::Delete);
    w.delete_cluster();
}
fn retain_removed(w: &mut World) {
    w.edit(|s| s.storage.removed_member = quorate_api::Keep::Retain);
}
fn grow_volumes(w: &mut World) {
    w.edit(|s| s.storage.size = "2Gi".to_owned());
}
fn invalid_spec(w: &mut World) {
    w.edit(|s| s.replicas = 4000);
}

fn fence(w: &mut World, names: &[String]) {
    w.asked.insert(ANNOTATION_FENCE.to_owned(), names.join(","));
    w.was_fenced.extend(names.iter().cloned());
}
fn fence_follower(w: &mut World) {
    let names = w.followers()[..1].to_vec();
    fence(w, &names);
}
fn fence_two(w: &mut World) {
    let names = w.followers()[..2].to_vec();
    fence(w, &names);
}
fn fence_leader(w: &mut World) {
    let name = w.name_of_leader();
    fence(w, &[name]);
}
fn unfence(w: &mut World) {
    w.asked.remove(ANNOTATION_FENCE);
}
fn ask_each(w: &mut World, key: &str, value: impl Fn(&MemberRecord) -> String) {
    let entries: Vec<_> = w.records.values().map(|r| format!("{}@{}", r.name, value(r))).collect();
    w.asked.insert(key.to_owned(), entries.join(","));
}
fn restart_all(w: &mut World) {
    ask_each(w, ANNOTATION_RESTART, |r| r.pod.as_ref().unwrap().uid.clone());
}
fn replace_all(w: &mut World) {
    ask_each(w, ANNOTATION_REPLACE, |r| r.member_id.unwrap().to_string());
}
fn replace(w: &mut World, name: &str) {
    let id = w.records[name].member_id.unwrap();
    w.asked.insert(ANNOTATION_REPLACE.to_owned(), format!("{name}@{id}"));
}
fn replace_follower(w: &mut World) {
    let name = w.followers()[0].clone();
    replace(w, &name);
}
fn replace_leader(w: &mut World) {
    let name = w.name_of_leader();
    replace(w, &name);
}
fn transfer(w: &mut World) {
    let value = format!("{}@{}", w.followers()[1], w.raft.term);
    w.asked.insert(ANNOTATION_TRANSFER.to_owned(), value);
}

/// All of them; the first ones are the main job.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario("bootstrap_one", 1, vec![Settle]),
        scenario("bootstrap_single_seed_then_three", 3, vec![Settle]),
        scenario("bootstrap_five", 5, vec![Settle]),
        scenario("bootstrap_spec_change_midway", 3, vec![Steps(6), Do(scale_to_5), Steps(7), Do(scale_to_1), Settle]),
        scenario("bootstrap_bad_image_then_corrected", 3, vec![Do(bad_image), Ticks(20), Do(old_image), Settle]),
        scenario(
            "scale_1_3_5_3_1",
            1,
            vec![
                Settle,
                Do(scale_to_3),
                Settle,
                Do(scale_to_5),
                Settle,
                Do(scale_to_3),
                Settle,
                Do(scale_to_1),
                Settle,
            ],
        ),
        scenario("scale_to_two_and_back", 3, vec![Settle, Do(scale_to_2), Settle, Do(scale_to_3), Settle]),
        scenario("scale_in_retains_volumes_when_asked", 3, vec![Do(retain_removed), Settle, Do(scale_to_1), Settle]),
        scenario("pod_delete_follower", 3, vec![Settle, Do(lose_follower_pod), Ticks(10), Settle]),
        scenario("pod_delete_leader", 3, vec![Settle, Do(lose_leader_pod), Ticks(10), Settle]),
        scenario("delete_two_of_three_pods_recovers", 3, vec![Settle, Do(lose_two_pods), Ticks(20), Settle]),
        scenario("delete_all_pods_recovers", 3, vec![Settle, Do(lose_all_pods), Ticks(20), Settle]),
        scenario("volume_lost_member_is_replaced", 3, vec![Settle, Do(lose_follower_volume), Ticks(3), Settle]),
        scenario("volume_lost_leader_is_replaced", 3, vec![Settle, Do(lose_leader_volume), Ticks(3), Settle]),
        scenario(
            "majority_of_volumes_lost_waits_for_a_person",
            3,
            vec![Settle, Do(lose_two_volumes), Ticks(5), Blocked("QuorumLost")],
        ),
        scenario("upgrade_followers_first_leader_last", 3, vec![Settle, Do(new_image), Settle]),
        scenario("upgrade_five", 5, vec![Settle, Do(new_image), Settle]),
        scenario("upgrade_one_with_named_downtime", 1, vec![Settle, Do(new_image), Settle]),
        scenario("upgrade_two_with_named_downtime", 2, vec![Settle, Do(new_image), Settle]),
        scenario(
            "upgrade_bad_image_stops_after_one_and_reverts",
            3,
            vec![Settle, Do(bad_image), Blocked("CanaryFailed"), Ticks(30), Do(old_image), Settle],
        ),
        scenario(
            "upgrade_bad_image_then_a_good_one",
            3,
            vec![Settle, Do(bad_image), Blocked("CanaryFailed"), Do(new_image), Settle],
        ),
        scenario("upgrade_bad_image_of_one_reverts", 1, vec![Settle, Do(bad_image), Ticks(30), Do(old_image), Settle]),
        scenario("upgrade_and_scale_same_edit", 3, vec![Settle, Do(new_image), Do(scale_to_5), Settle]),
        scenario("upgrade_and_shrink_same_edit", 5, vec![Settle, Do(new_image), Do(scale_to_3), Settle]),
        scenario("upgrade_flipped_back_midway", 3, vec![Settle, Do(new_image), Steps(3), Do(old_image), Settle]),
        scenario(
            "scale_out_with_a_bad_image_reverts",
            3,
            vec![Settle, Do(bad_image), Do(scale_to_5), Ticks(30), Do(old_image), Settle],
        ),
        scenario(
            "upgrade_waits_for_margin",
            3,
            vec![Settle, Do(kill_follower_node), Ticks(5), Do(new_image), Ticks(20), Do(revive_nodes), Settle],
        ),
        scenario(
            "scale_in_takes_the_dead_one",
            5,
            vec![Settle, Do(kill_follower_node), Ticks(5), Do(scale_to_3), Settle],
        ),
        scenario(
            "silent_member_is_replaced_and_fenced",
            3,
            vec![Do(hurry), Settle, Do(cut_off_follower), Ticks(100), Do(reconnect), Settle],
        ),
        scenario(
            "member_of_a_dead_node_is_replaced",
            3,
            vec![Do(hurry), Settle, Do(kill_follower_node), Ticks(80), Settle],
        ),
        scenario(
            "silent_member_returns_in_time",
            3,
            vec![Do(hurry), Settle, Do(cut_off_follower), Ticks(50), Do(reconnect), Settle],
        ),
        scenario(
            "silent_member_returns_while_it_is_replaced",
            3,
            vec![
                Do(hurry),
                Settle,
                Do(starve_learners),
                Do(cut_off_follower),
                Ticks(90),
                Do(reconnect),
                Ticks(20),
                Do(feed_learners),
                Settle,
            ],
        ),
        scenario(
            "silent_member_is_kept_where_asked",
            3,
            vec![Do(hurry), Settle, Do(never_replace), Do(cut_off_follower), Ticks(150), Do(reconnect), Settle],
        ),
        scenario(
            "replacement_of_the_silent_called_off",
            3,
            vec![
                Do(hurry),
                Settle,
                Do(starve_learners),
                Do(cut_off_follower),
                Ticks(90),
                Do(never_replace),
                Ticks(10),
                Do(feed_learners),
                Do(reconnect),
                Settle,
            ],
        ),
        scenario(
            "silent_through_a_change_of_leaders",
            5,
            vec![
                Do(hurry),
                Settle,
                Do(cut_off_follower),
                Ticks(40),
                Do(lose_leader_pod),
                Ticks(150),
                Do(reconnect),
                Settle,
            ],
        ),
        scenario(
            "two_silent_of_five_are_replaced_in_turn",
            5,
            vec![Do(hurry), Settle, Do(cut_off_two), Ticks(150), Do(reconnect), Settle],
        ),
        scenario(
            "two_silent_of_three_are_waited_for",
            3,
            vec![Do(hurry), Settle, Do(cut_off_two), Ticks(150), Do(reconnect), Settle],
        ),
        scenario(
            "a_template_that_does_not_start_is_no_silence",
            3,
            vec![Do(hurry), Settle, Do(bad_image), Blocked("CanaryFailed"), Ticks(150), Do(old_image), Settle],
        ),
        scenario(
            "shrinking_takes_the_silent_one",
            5,
            vec![Do(hurry), Settle, Do(cut_off_follower), Ticks(40), Do(scale_to_3), Ticks(60), Do(reconnect), Settle],
        ),
        scenario(
            "lost_zone_gives_no_other_a_majority",
            3,
            vec![Do(three_zones), Do(hurry), Settle, Do(lose_zone), Ticks(150), Do(three_zones), Do(reconnect), Settle],
        ),
        scenario(
            "volume_lost_with_its_zone_waits_for_the_zone",
            3,
            vec![Do(three_zones), Do(hurry), Settle, Do(lose_zone_and_volume), Ticks(60), Do(three_zones), Settle],
        ),
        scenario("record_deleted_by_hand_is_replaced", 3, vec![Settle, Do(delete_follower_record), Settle]),
        scenario("record_of_leader_deleted_by_hand_is_replaced", 3, vec![Settle, Do(delete_leader_record), Settle]),
        scenario("record_of_the_only_member_deleted_by_hand", 1, vec![Settle, Do(delete_leader_record), Settle]),
        scenario(
            "vanished_record_comes_back_with_its_identity",
            3,
            vec![Settle, Do(vanish_follower_record), Ticks(3), Settle],
        ),
        scenario("removed_by_hand_is_replaced", 3, vec![Settle, Do(remove_follower_by_hand), Settle]),
        scenario("lost_marker_is_recorded_again", 3, vec![Settle, Do(lose_marker), Settle]),
        scenario(
            "learner_never_catches_up_is_removed",
            3,
            vec![Settle, Do(starve_learners), Do(scale_to_5), Ticks(640), Do(feed_learners), Settle],
        ),
        scenario(
            "pause_blocks_every_mutation",
            3,
            vec![Settle, Do(pause), Do(scale_to_5), Ticks(20), Do(unpause), Settle],
        ),
        scenario("sleep_and_wake", 3, vec![Settle, Do(sleep), Settle, Ticks(20), Do(wake), Settle]),
        scenario("sleep_and_wake_of_one", 1, vec![Settle, Do(sleep), Settle, Do(wake_1), Settle]),
        scenario("sleep_and_wake_larger", 3, vec![Settle, Do(sleep), Settle, Do(wake_5), Settle]),
        scenario("sleep_and_wake_smaller", 3, vec![Settle, Do(sleep), Settle, Do(wake_1), Settle]),
        scenario(
            "sleep_while_growing",
            3,
            vec![Settle, Do(scale_to_5), Steps(9), Do(sleep), Settle, Do(wake_5), Settle],
        ),
        scenario(
            "sleep_while_shrinking",
            2,
            vec![Settle, Do(scale_to_1), Steps(1), Do(sleep), Settle, Do(wake_1), Settle],
        ),
        scenario("sleep_while_bootstrapping", 3, vec![Steps(6), Do(sleep), Settle, Do(wake), Settle]),
        scenario(
            "sleep_while_replacing",
            3,
            vec![Settle, Do(lose_follower_volume), Steps(3), Do(sleep), Settle, Do(wake), Settle],
        ),
        scenario("sleep_taken_back_midway", 3, vec![Settle, Do(sleep), Steps(2), Do(wake), Settle]),
        scenario("volume_lost_asleep", 3, vec![Settle, Do(sleep), Settle, Do(lose_sleeping_volume), Do(wake), Settle]),
        scenario("deletion_asleep", 3, vec![Settle, Do(sleep), Settle, Do(delete_with_volumes), Settle]),
        scenario("volumes_shrink_by_surge", 3, vec![Settle, Do(shrink_volumes), Settle]),
        scenario("volumes_move_by_surge", 3, vec![Settle, Do(move_volumes), Settle]),
        scenario("volume_of_the_only_member_shrinks", 1, vec![Settle, Do(shrink_volumes), Settle]),
        scenario(
            "upgrade_waits_for_approval",
            3,
            vec![Settle, Do(ask_first), Do(new_image), Blocked("WaitingForApproval"), Ticks(10), Do(approve), Settle],
        ),
        scenario(
            "shrink_waits_for_approval",
            5,
            vec![Settle, Do(ask_always), Do(scale_to_3), Blocked("WaitingForApproval"), Ticks(10), Do(approve), Settle],
        ),
        scenario("repair_waits_for_no_approval", 3, vec![Settle, Do(ask_first), Do(lose_follower_volume), Settle]),
        scenario("volumes_grow", 3, vec![Settle, Do(grow_volumes), Settle]),
        scenario(
            "invalid_spec_changes_nothing_and_heals",
            3,
            vec![Settle, Do(invalid_spec), Blocked("InvalidSpec"), Ticks(10), Do(scale_to_5), Settle],
        ),
        scenario(
            "fence_and_unfence",
            3,
            vec![Settle, Do(fence_follower), Blocked("MemberFenced"), Ticks(5), Do(unfence), Settle],
        ),
        scenario(
            "fence_of_the_leader_hands_over_first",
            3,
            vec![Settle, Do(fence_leader), Blocked("MemberFenced"), Do(unfence), Settle],
        ),
        scenario("fence_without_margin_waits", 1, vec![Settle, Do(fence_leader), Ticks(20), Do(unfence), Settle]),
        scenario("fence_of_two_takes_one", 5, vec![Settle, Do(fence_two), Ticks(30), Do(unfence), Settle]),
        scenario(
            "upgrade_waits_for_the_fenced",
            5,
            vec![Settle, Do(fence_follower), Blocked("MemberFenced"), Do(new_image), Ticks(30), Do(unfence), Settle],
        ),
        scenario("restart_of_all_by_request", 5, vec![Settle, Do(restart_all), Settle]),
        scenario(
            "restart_by_request_waits_for_margin",
            3,
            vec![Settle, Do(kill_follower_node), Ticks(5), Do(restart_all), Ticks(20), Do(revive_nodes), Settle],
        ),
        scenario("replacement_by_request", 3, vec![Settle, Do(replace_follower), Settle]),
        scenario("replacement_of_the_leader_by_request", 3, vec![Settle, Do(replace_leader), Settle]),
        scenario("replacement_of_all_by_request", 3, vec![Settle, Do(replace_all), Settle]),
        scenario("transfer_by_request", 3, vec![Settle, Do(transfer), Settle]),
        scenario("deletion_keeps_volumes", 3, vec![Settle, Do(delete), Settle]),
        scenario("deletion_with_volumes", 3, vec![Settle, Do(delete_with_volumes), Settle]),
        scenario("deletion_without_quorum", 3, vec![Settle, Do(lose_two_volumes), Do(delete_with_volumes), Settle]),
        scenario("deletion_midway_through_growth", 3, vec![Steps(14), Do(delete_with_volumes), Settle]),
    ];
    all.extend(
        FLIPS.iter().map(|(name, after)| {
            scenario(name, 3, vec![Settle, Do(scale_to_5), Steps(*after), Do(scale_to_3), Settle])
        }),
    );
    all.extend(
        FLIPS_BACK.iter().map(|(name, after)| {
            scenario(name, 5, vec![Settle, Do(scale_to_3), Steps(*after), Do(scale_to_5), Settle])
        }),
    );
    all
}

const FLIPS: [(&str, usize); 4] = [
    ("flip_3_5_3_after_2_steps", 2),
    ("flip_3_5_3_after_4_steps", 4),
    ("flip_3_5_3_after_6_steps", 6),
    ("flip_3_5_3_after_9_steps", 9),
];

const FLIPS_BACK: [(&str, usize); 3] =
    [("flip_5_3_5_after_1_step", 1), ("flip_5_3_5_after_3_steps", 3), ("flip_5_3_5_after_7_steps", 7)];
