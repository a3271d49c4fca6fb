//! Both devices in front of a real kernel in User-Mode Linux.
//!
//! Needs root and `BULKHEAD_TEST_UML=<kernel>`; says so and passes otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::{Hypervisor, Machine};

/// Runs a scenario in a guest of its own.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            if let Some(hypervisor) = Hypervisor::uml() {
                scenarios::$name(Machine::start(&hypervisor));
            }
        })*
    };
}

scenarios!(
    guest_that_is_told_to_power_off_ends_the_device_process,
    control_channel_closed_ends_the_device_process,
    connection_to_a_port_nobody_expects_is_reset,
    connection_to_an_expected_port_is_served_once,
    connection_from_the_host_reaches_a_listening_guest,
    connection_from_the_host_to_a_silent_port_is_refused,
    stream_carries_a_gibibyte_both_ways_in_bounded_memory,
    stream_half_closed_by_the_guest_still_brings_the_answer,
    stream_whose_host_reader_is_gone_breaks_the_guests_pipe,
    stream_nobody_reads_keeps_the_device_small_and_loses_nothing,
    stream_cancelled_breaks_in_the_guest,
    streams_two_hundred_at_once_keep_their_bytes_apart,
    output_of_a_dead_guest_is_delivered,
    pipe_ends_at_the_guest_when_the_host_closes_it,
    regular_file_is_read_to_its_end,
    share_shows_files_links_and_owners_both_ways,
    share_device_nodes_and_fifos_are_the_guests_own,
);
