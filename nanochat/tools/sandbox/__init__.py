"""Model-written code, run where it can harm nothing and graded where it can change nothing.

The boundary is the kernel: the code is assumed to control its whole process. `lockdown` closes that process,
`isolation` measures how well this machine does so, `child` is what runs in it, `grading` starts it and judges.
"""
