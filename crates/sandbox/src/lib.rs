//! The sandbox process: one per VM; lifecycle, Task service, journal, timeline.
