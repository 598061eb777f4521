"""What a user asks for, where each value comes from, and what it means on a machine: settings, plan, memory."""
