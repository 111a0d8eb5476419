// Runs kernels on the host, one block after another: the threads of a block are fibers, shared memory starts as NaN and
// ends at a guard page, and the order in which warps run, and when asynchronous copies arrive, can be changed to show
// missing barriers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "fiber.h"
#include "half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace emulate {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

enum class Copies { early, late };

// How the next launches run: what is undefined on a device and must not matter.
struct Schedule {
    unsigned seed = 0;  // 0: warps in order, 1: in reverse, others: shuffled between barriers
    Copies copies = Copies::late;
};

enum class State { ready, at_warp, at_block, done };

struct Copy {
    void* to;
    const void* from;
    unsigned bytes, filled;
};

struct Thread {
    Context context;
    unsigned char* stack = nullptr;
    State state = State::ready;
    Index index;
    unsigned lane = 0, warp = 0;
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;  // ends of committed groups in `copies`
};

// Where the lanes of a warp meet for an instruction that they execute together: one place for each mask in use.
struct Meeting {
    const char* instruction = nullptr;
    unsigned mask = 0, arrived = 0;
    void* operands[32] = {};
};

struct Warp {
    Meeting meetings[4];

    Meeting* at(unsigned mask) {
        for (Meeting& meeting : meetings) {
            if (meeting.arrived && meeting.mask == mask) return &meeting;
        }
        for (Meeting& meeting : meetings) {
            if (!meeting.arrived) return &meeting;
        }
        return nullptr;
    }
};

struct Machine {
    static constexpr std::size_t stack_bytes = 128 * 1024;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned char*> stacks;
    Context scheduler;
    std::function<void()> kernel;
    unsigned char* shared = nullptr;
    std::size_t shared_bytes = 0;
    std::vector<std::vector<unsigned char>> arrays;  // static shared memory, one entry per declaration
    const char* name = "";
    Schedule schedule;
    std::mt19937 random;
};

inline Machine machine;
inline Thread* current = nullptr;
inline Index block_index, block_size, grid_size;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "%s: block %u, thread %u: %s\n", machine.name, block_index.x,
                 current ? current->index.x : 0, what);
    std::_Exit(3);
}

// On to another lane of the warp that can go on, or else back to the scheduler.
inline void yield() {
    Thread* self = current;
    Thread* first = self - self->lane;
    const unsigned step = machine.schedule.seed % 2 ? 31 : 1;
    for (unsigned lane = (self->lane + step) % 32; lane != self->lane; lane = (lane + step) % 32) {
        if (first[lane].state != State::ready) continue;
        current = first + lane;
        return switch_context(&self->context, &current->context);
    }
    switch_context(&self->context, &machine.scheduler);
}

inline void finish(const Copy& copy) {
    std::memcpy(copy.to, copy.from, copy.filled);
    std::memset(static_cast<unsigned char*>(copy.to) + copy.filled, 0, copy.bytes - copy.filled);
}

inline void run_thread() {
    machine.kernel();
    if (!current->copies.empty()) fail("left with asynchronous copies under way");
    current->state = State::done;
    yield();
}

// All lanes of `mask` call this with an operand each; the last one to come lets `run` work on all of them.
template <typename Operand>
void meet(const char* instruction, unsigned mask, Operand& operand, void (*run)(Operand* const*, unsigned)) {
    const unsigned bit = 1u << current->lane;
    if (!(mask & bit)) fail("a lane outside of the mask takes part");
    Meeting* found = machine.warps[current->warp].at(mask);
    if (!found) fail("the lanes of a warp wait in more than four groups");
    Meeting& meeting = *found;
    if (meeting.arrived == 0) {
        meeting.instruction = instruction;
        meeting.mask = mask;
    } else if (std::strcmp(meeting.instruction, instruction) != 0) {
        fail("lanes of a warp meet at different instructions");
    }
    meeting.operands[current->lane] = &operand;
    meeting.arrived |= bit;
    if (meeting.arrived != mask) {
        current->state = State::at_warp;
        return yield();
    }
    run(reinterpret_cast<Operand* const*>(meeting.operands), mask);
    meeting.arrived = 0;
    Thread* first = current - current->lane;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1) first[lane].state = State::ready;
    }
}

inline void sync_threads() {
    current->state = State::at_block;
    yield();
}

inline void run_warp(unsigned warp) {
    for (bool moved = true; moved;) {
        moved = false;
        for (unsigned lane = 0; lane < 32; ++lane) {
            Thread& thread = machine.threads[warp * 32 + (machine.schedule.seed % 2 ? 31 - lane : lane)];
            if (thread.state != State::ready) continue;
            moved = true;
            current = &thread;
            switch_context(&machine.scheduler, &thread.context);
        }
    }
}

// Between two barriers one warp runs as far as it can before the next one starts.
inline void run_to_barrier(std::vector<unsigned>& order) {
    if (machine.schedule.seed > 1) std::shuffle(order.begin(), order.end(), machine.random);
    for (unsigned warp : order) run_warp(warp);
}

inline void poison(void* bytes, std::size_t size) { std::memset(bytes, 0xff, size); }

inline void run_block() {
    const std::size_t warps = machine.warps.size();
    std::vector<unsigned> order(warps);
    for (unsigned i = 0; i < warps; ++i) order[i] = machine.schedule.seed == 1 ? unsigned(warps) - 1 - i : i;
    for (Thread& thread : machine.threads) {
        prepare_context(thread.context, thread.stack, Machine::stack_bytes, run_thread);
        thread.state = State::ready;
    }
    poison(machine.shared, machine.shared_bytes);
    for (auto& array : machine.arrays) poison(array.data(), array.size());
    while (true) {
        run_to_barrier(order);
        std::size_t done = 0, waiting = 0;
        for (const Thread& thread : machine.threads) {
            done += thread.state == State::done;
            waiting += thread.state == State::at_block;
        }
        if (done == machine.threads.size()) return;
        if (waiting != machine.threads.size()) fail("some threads wait for others that will not come");
        for (Thread& thread : machine.threads) thread.state = State::ready;
    }
}

inline void resize_block(unsigned count) {
    while (machine.stacks.size() < count) machine.stacks.push_back(guarded_bytes(Machine::stack_bytes, true));
    machine.threads.assign(count, Thread{});
    machine.warps.assign(count / 32, Warp{});
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = machine.threads[i];
        thread.stack = machine.stacks[i];
        thread.index = {i, 0, 0};
        thread.lane = i % 32;
        thread.warp = i / 32;
    }
}

// One launch of `kernel`: grids and blocks of one dimension, as all kernels here use.
inline void launch(const char* name, unsigned blocks, unsigned threads, std::size_t shared,
                   std::function<void()> kernel) {
    machine.name = name;
    current = nullptr;
    if (blocks == 0 || threads == 0 || threads > 1024 || threads % 32 || shared % 16) fail("launch out of range");
    resize_block(threads);
    machine.kernel = std::move(kernel);
    machine.random.seed(machine.schedule.seed);
    machine.shared_bytes = shared;
    machine.shared = guarded_bytes(shared);
    block_size = {threads, 1, 1};
    grid_size = {blocks, 1, 1};
    for (unsigned i = 0; i < blocks; ++i) {
        block_index = {i, 0, 0};
        run_block();
    }
    free_guarded_bytes(machine.shared, shared);
}

// Static shared memory: one array per declaration, the same for all threads.
inline std::size_t new_array(std::size_t bytes) {
    machine.arrays.emplace_back(bytes);
    poison(machine.arrays.back().data(), bytes);
    return machine.arrays.size() - 1;
}

}  // namespace emulate

#define threadIdx (emulate::current->index)
#define blockIdx (emulate::block_index)
#define blockDim (emulate::block_size)
#define gridDim (emulate::grid_size)

using std::max;
using std::min;

inline void __syncthreads() { emulate::sync_threads(); }

#include "collective.h"
