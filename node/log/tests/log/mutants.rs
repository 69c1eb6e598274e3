//! Plants each bug of the log and runs the checks until one turns red. Prints which, and after how long.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use quorate_log::mutant::Mutant;

use crate::{basics, repair, space};

thread_local! {
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// The bug planted in this thread's logs.
pub(crate) fn planted() -> Option<Mutant> {
    PLANTED.get()
}

type Check = (&'static str, fn());

macro_rules! checks {
    ($($module:ident::$name:ident,)+) => {
        &[$((stringify!($name), $module::$name as fn()),)+]
    };
}

/// Quick ones first.
const CHECKS: &[Check] = checks![
    basics::a_log_gives_back_what_was_appended_across_segments_and_restarts,
    basics::a_sealed_last_batch_is_never_cut,
    basics::a_lost_slot_with_a_cut_tail_must_not_vote,
    basics::both_slots_lost_is_refused,
    basics::a_foreign_directory_is_refused_and_an_existing_one_not_created_again,
    basics::a_segment_of_another_member_among_ours_is_refused,
    basics::a_failed_flush_stops_the_log_and_the_restart_trusts_only_the_medium,
    basics::a_vote_is_durable_in_both_copies_before_it_is_acknowledged,
    basics::each_record_changes_what_the_log_holds_as_it_says_and_no_more,
    basics::a_segment_stays_while_one_entry_in_it_is_above_the_mark,
    basics::a_torn_tail_is_gone_for_good,
    basics::slots_are_written_in_turn,
    basics::a_batch_of_another_history_is_refused,
    basics::every_open_raises_the_generation_whatever_slot_is_lost,
    basics::writes_out_of_order_are_refused_and_change_nothing,
    basics::an_engine_beyond_the_log_counts_as_a_mark_and_one_behind_it_is_refused,
    basics::any_flipped_byte_of_a_meta_slot_still_gives_the_newest_vote,
    space::a_full_volume_is_low_and_votes_truncations_and_marks_go_on_in_the_reserve,
    space::a_reserve_outlives_a_restart_and_serves_then,
    space::the_next_segment_is_ready_before_it_is_needed,
    space::a_spare_without_room_is_dropped_and_tried_again_later_and_nothing_else_stops,
    space::a_spare_whose_flush_fails_otherwise_stops_the_log,
    repair::a_crash_at_any_step_of_a_repair_leaves_it_repeatable,
    repair::a_scrub_finds_rot_in_finished_segments_and_mends_it_while_the_log_is_in_use,
    basics::a_crash_at_any_disk_operation_loses_nothing_that_was_acknowledged,
    basics::a_last_batch_torn_at_any_byte_is_cut_and_nothing_before_it,
    repair::lost_sectors_and_blocks_are_repaired_exactly_or_refused,
    basics::rot_in_the_middle_is_refused_whatever_byte_it_hits,
    basics::misdirected_and_zeroed_sectors_are_refused_or_harmless,
    repair::without_a_peer_or_with_a_liar_nothing_is_made_up,
];

#[test]
fn every_planted_bug_is_caught() {
    // What a check says when it turns red is what it is for; here only that it does.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        PLANTED.set(Some(*mutant));
        let start = Instant::now();
        let killer = CHECKS.iter().find(|(_, check)| catch_unwind(AssertUnwindSafe(check)).is_err());
        let ms = start.elapsed().as_millis();
        match killer {
            Some((name, _)) => println!("killed   {:<30} {ms:>6} ms  {name}", mutant.name()),
            None => {
                println!("SURVIVED {:<30} {ms:>6} ms  ({})", mutant.name(), mutant.rule());
                survivors.push(mutant.name());
            }
        }
    }
    PLANTED.set(None);
    std::panic::set_hook(hook);
    println!("{} of {} planted bugs of the log killed", Mutant::ALL.len() - survivors.len(), Mutant::ALL.len());
    assert!(survivors.is_empty(), "survivors: {survivors:?}");
}
