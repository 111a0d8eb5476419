// Stacks that take turns on one processor thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulate {

// Bytes that end where memory may not be touched, so that running over the end is seen at once.
inline unsigned char* guarded_bytes(std::size_t size, bool guard_below = false) {
    const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
    const std::size_t whole = (size + page - 1) / page * page + page;
    void* base = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    auto* bytes = static_cast<unsigned char*>(base);
    mprotect(guard_below ? bytes : bytes + whole - page, page, PROT_NONE);
    return guard_below ? bytes + page : bytes + whole - page - size;
}

inline void free_guarded_bytes(unsigned char* bytes, std::size_t size) {
    const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
    const std::size_t whole = (size + page - 1) / page * page + page;
    munmap(bytes + size + page - whole, whole);
}

#if defined(__x86_64__)

struct Context {
    void* stack_pointer = nullptr;
};

// Only what a called function must keep is saved; makes a switch a few nanoseconds, where ucontext calls the kernel.
__attribute__((naked, noinline)) inline void switch_context(Context* /*from: rdi*/, Context* /*to: rsi*/) {
    asm volatile(
        "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
        "movq %rsp, (%rdi)\n\tmovq (%rsi), %rsp\n\t"
        "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tretq");
}

inline void prepare_context(Context& context, unsigned char* stack, std::size_t size, void (*start)()) {
    auto* top = reinterpret_cast<std::uintptr_t*>((reinterpret_cast<std::uintptr_t>(stack) + size) / 16 * 16);
    // From the top: a return address that is never used, where to start, six saved registers.
    *--top = 0;
    *--top = reinterpret_cast<std::uintptr_t>(start);
    for (int i = 0; i < 6; ++i) *--top = 0;
    context.stack_pointer = top;
}

#else

using Context = ucontext_t;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void prepare_context(Context& context, unsigned char* stack, std::size_t size, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
}

#endif

}  // namespace emulate
